"""Reinforcement learning with verifiable rewards: what a run has beyond supervised training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lowregret.specs.objective import PolicyGradientSpec
from lowregret.specs.reward import RewardSpec
from lowregret.specs.sampling import SamplingSpec

COLLAPSED = 0.5
"""A run has collapsed that ends below this share of its best accuracy (science.md, section 3: at too high a rate others
read 0.85 at the best step and 0 at the end)."""


@dataclass(frozen=True, kw_only=True)
class RLSpec:
    """Groups, rewards, sampler and objective. `train.batch_size` counts prompts a step and slot.

    >>> RLSpec(rewards=(RewardSpec(source="math"),)).group
    16
    """

    rewards: tuple[RewardSpec, ...]
    """Scorers; the reward is their weighted sum."""
    group: int = 16
    """Completions of each prompt; the advantage is the reward minus their mean."""
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    objective: PolicyGradientSpec = field(default_factory=PolicyGradientSpec)
    updates_per_batch: int = 1
    """Optimizer steps that each batch of rollouts is split into. 1: every step is on-policy."""
    dynamic: int = 0
    """Rounds of further prompts that replace groups whose rewards are all equal. 0: such groups are only counted."""
    eval_samples: int = 0
    """Sampled completions of each held-out prompt, beside the greedy one. Both kinds are measured before and after
    training, on the way only what `judge_by` says."""
    judge_by: Literal["greedy", "sampled"] = "greedy"
    """Which held-out answers a study counts. `sampled` is what the objective makes larger, and needs `eval_samples`;
    `greedy` is what most users deploy, and can be right long before the policy is."""
    template: str | None = None
    """How a question becomes a prompt, with `{question}` in it. None: the model's chat template where it has one, else
    the question alone."""
