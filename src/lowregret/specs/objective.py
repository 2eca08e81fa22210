"""The objective of a policy gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PolicyGradientSpec:
    """sum over tokens of (p_learner / p_sampler) * advantage, and what may be changed about it.

    >>> PolicyGradientSpec().ratio
    'token'
    """

    ratio: Literal["token", "sequence"] = "token"
    """`token` weighs each token by its own ratio (paper); `sequence` by the geometric mean over its completion."""
    clip_low: float | None = None
    """PPO: no gradient where the ratio is below 1 - clip_low and the advantage negative. None: no clipping."""
    clip_high: float | None = None
    """PPO: no gradient where the ratio is above 1 + clip_high and the advantage positive. None: no clipping."""
    truncate: float | None = None
    """Largest ratio that counts: what is above it is cut to it, but keeps its gradient. None: no truncation."""
    divide_by_std: bool = False
    """Divide advantages by the group's standard deviation. Off: easy and hard prompts would weigh more."""
    kl: float = 0.0
    """Nats of reward that a nat of divergence from the base costs, token by token. The base is the bank without
    adapters; full fine-tuning keeps none and can't have it."""
    normaliser: Literal["completions", "tokens"] = "completions"
    """The sum over tokens is divided by the number of completions (no length normalisation) or of tokens."""
