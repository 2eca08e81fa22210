"""What is counted about rollouts: one line of a log from a slot's groups."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from lowregret.batches import Rollout, RolloutGroup
from lowregret.store.rows import AccuracyRow, PolicyRow
from lowregret.training.policy_step import PolicyStep

How = Literal["greedy", "sampled"]
PASS_TOLERANCE = 1e-6
"""A completion passes if its reward is the full one, up to rounding of a weighted sum."""


class Drawn:
    """A slot's groups of one step: those it learns from, and all that were drawn."""

    def __init__(self) -> None:
        self.groups: list[RolloutGroup] = []
        self.all: list[RolloutGroup] = []

    def add(self, groups: Sequence[RolloutGroup], *, replace_dull: bool, size: int) -> None:
        """Take in groups, those without signal only if no others will replace them."""
        self.all += groups
        kept = [group for group in groups if group.has_signal or not replace_dull]
        self.groups += kept[: size - len(self.groups)]


def policy_row(slot: str, drawn: Drawn, learned: PolicyStep, *, step: int, lr: float, full_reward: float) -> PolicyRow:
    """A step of a slot. Rewards and lengths are those of everything drawn: what was replaced would bias them."""
    rollouts = [rollout for group in drawn.all for rollout in group.rollouts]
    logprobs = np.concatenate([rollout.completion.logprobs for rollout in rollouts])
    lengths = [rollout.completion.num_tokens for rollout in rollouts]
    return PolicyRow(
        step=step,
        slot=slot,
        reward=float(np.mean([rollout.reward for rollout in rollouts])),
        pass_rate=pass_rate(rollouts, full_reward),
        objective=learned.objective,
        lr=lr,
        completions=len(rollouts),
        mean_length=float(np.mean(lengths)),
        truncated=float(np.mean([not rollout.completion.stopped for rollout in rollouts])),
        entropy=float(-logprobs.mean()),
        without_signal=sum(not group.has_signal for group in drawn.groups),
        groups=len(drawn.groups),
        bits=sum(map(reward_bits, drawn.groups)),
        resampled=len(drawn.all) - len(drawn.groups),
        failures=sum(bool(rollout.failure) for rollout in rollouts),
        grad_norm=learned.grad_norm,
        ratio_mean=learned.ratio_mean if learned.updated else None,
        ratio_max=learned.ratio_max if learned.updated else None,
        clipped=learned.clipped if learned.updated else None,
        kl=learned.kl,
        tokens=sum(len(group.prompt) for group in drawn.all) + sum(lengths) + learned.tokens,
    )


def accuracy_row(
    slot: str,
    groups: Sequence[RolloutGroup],
    *,
    step: int,
    split: str,
    how: How,
    kl: float | None,
    full_reward: float,
) -> AccuracyRow:
    """A slot's answers to a split."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return AccuracyRow(
        step=step,
        slot=slot,
        split=split,
        how=how,
        accuracy=pass_rate(rollouts, full_reward),
        reward=float(np.mean([rollout.reward for rollout in rollouts])),
        problems=len(groups),
        mean_length=float(np.mean([rollout.completion.num_tokens for rollout in rollouts])),
        truncated=float(np.mean([not rollout.completion.stopped for rollout in rollouts])),
        failures=sum(bool(rollout.failure) for rollout in rollouts),
        kl=kl,
    )


def pass_rate(rollouts: Sequence[Rollout], full_reward: float) -> float:
    """Share of completions with the full reward."""
    return float(np.mean([rollout.reward >= full_reward - PASS_TOLERANCE for rollout in rollouts]))


def reward_bits(group: RolloutGroup) -> float:
    """Most that a group's rewards can tell: their number times the entropy of their distribution in the group, bits.

    For 0/1 rewards that is G * H2(pass rate) (science.md, section 2).
    """
    size = len(group.rollouts)
    shares = [count / size for count in Counter(group.rewards.tolist()).values()]
    return -size * sum(share * math.log2(share) for share in shares) + 0.0
