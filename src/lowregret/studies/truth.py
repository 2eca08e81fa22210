"""What a simulated study is drawn from: loss surfaces whose truth is known.

The model of a final loss is a floor that the arm decides, a U-curve around the arm's LR* with a steeper upper side, a
part that all arms of a seed share (they see the same data), and independent noise of the run and of each split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lowregret.studies.claims.c3_rank_free_rate import TIED
from lowregret.studies.claims.c8_batch import EQUAL_STEPS
from lowregret.studies.outcome import Arm
from lowregret.studies.students_t import Floats
from lowregret.studies.swallowing import ADD, NEAREST, USUAL
from lowregret.studies.truth_rl import RLTruth

REFERENCE_RANK, REFERENCE_WIDTH, REFERENCE_STEPS, REFERENCE_BATCH = 16, 128, 1000, 8
START_LOSS, FLOOR, LOG_STEP_DROP = 5.0, 2.0, 0.3
"""Nats a token: before training, FullFT's at its best rate, and the fall with each e-fold of steps."""
DEPARTURE_GROWTH = 0.1
"""Nats that an arm which has left the common curve loses with each e-fold of steps."""
FIRST_DEPARTURE = 0.02
"""Share of the run after which rank 1 departs."""
EARLY_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class RateTruth:
    """Where the best learning rates lie; slopes are of log LR* on the logarithm of what they are named after.

    >>> arm = Arm(method="full", params=1, batch_size=8, steps=1000, width=128)
    >>> RateTruth().best(arm)
    0.0003
    """

    full: float = 3e-4
    """LR* of FullFT."""
    ratio: float = 10.0
    """LoRA's over FullFT's at rank 16, width 128 and 1,000 steps."""
    rank_slope: float = 0.0
    tied_slope: float = -0.45
    """In place of `rank_slope` where alpha = r."""
    width_slope: float = 0.0
    length_slope: float = 0.0
    curvature: float = 0.04
    """Nats by squared e-fold: a rate 3 times off costs 0.024 (public sweeps: 0.02 to 0.06)."""
    skew: float = 0.1
    """Share by which a rate one e-fold too high costs more, and one too low less, than the quadratic."""
    diverges: float = 30.0
    """Times LR*."""
    lora_shift: float = 0.0
    """Decades by which LoRA's LR* is higher in usual bf16 arithmetic."""
    full_shift: float = 0.0
    """The same of FullFT."""

    def best(self, arm: Arm) -> float:
        """LR* of an arm."""
        shift = {ADD: self.lora_shift, NEAREST: self.full_shift}.get(arm.variant, 0.0)
        if shift:
            return 10**shift * self.best(replace(arm, variant=""))
        if arm.method == "full":
            return self.full
        tied = arm.variant == TIED
        rank = (arm.rank or 1) / REFERENCE_RANK
        alpha = 1.0 if tied else (arm.alpha / 32.0) ** -0.5
        width, length = (arm.width or REFERENCE_WIDTH) / REFERENCE_WIDTH, arm.steps / REFERENCE_STEPS
        slope = self.tied_slope if tied else self.rank_slope
        return self.full * self.ratio * alpha * rank**slope * width**self.width_slope * length**self.length_slope

    def excess(self, offset: Floats) -> Floats:
        """Nats above the floor at so many e-folds above LR*."""
        return 0.5 * self.curvature * offset**2 * (1 + self.skew * np.clip(offset, -2.0, 2.0))


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Standard deviations; all independent of each other.

    >>> Noise().run
    0.0015
    """

    shared: float = 0.01
    """Nats that all arms of a seed share."""
    run: float = 0.0015
    """Nats of a cell, on both splits."""
    split: float = 0.0005
    """Nats of a cell and split, at each evaluation."""
    jitter: float = 0.1
    """Of ln LR* of an arm from seed to seed."""


@dataclass(frozen=True, kw_only=True)
class SwallowedTruth:
    """What bf16 arithmetic does to updates; the defaults are about what was measured on SmolLM2-135M (science.md).

    >>> SwallowedTruth().lora
    0.44
    """

    lora: float = 0.44
    """Forward fidelity of the usual addition."""
    full: float = 0.1
    """Of copies to nearest."""
    faithful: float = 1.0
    """Of one accumulator and of stochastic copies."""
    trajectory: float = 0.8
    """The usual arm's share of the faithful arm's loss drop at the end, each at its LR*."""
    seeds: float = 0.01
    """Standard deviation of a forward fidelity over seeds."""
    sequences: float = 0.01
    """Standard error that the held-out sequences leave in all seeds alike."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Everything that a simulated study is drawn from.

    >>> Truth(regret=0.02).regret
    0.02
    """

    rates: RateTruth = field(default_factory=RateTruth)
    noise: Noise = field(default_factory=Noise)
    rl: RLTruth = field(default_factory=RLTruth)
    """Of studies of reinforcement, which read the gaps below as accuracies."""
    swallowed: SwallowedTruth = field(default_factory=SwallowedTruth)
    regret: float = 0.0
    """Floor of LoRA minus FullFT's, nats a token."""
    attention_gap: float = 0.0
    """Attention-only minus all, nats a token."""
    mlp_gap: float = 0.0
    """MLP-only minus all."""
    batch_growth: float = 0.0
    """Growth of LoRA's gap with each doubling of the batch, one epoch."""
    equal_growth: float = 0.0
    """The same at equal steps."""
    interaction: float = 0.0
    """Growth of either growth with each doubling of the rank."""
    early_difference: float = 0.0
    """Relative difference of the first 20 steps' loss drop, smallest rank to largest; in between linear in log rank."""
    departure_slope: float | None = None
    """Of log departure step on log rank; the largest rank never departs. None: no rank does."""
    bits_per_parameter: float = 1.5
    """Stored at saturation."""

    norm_ratio: float = 0.5
    """Log of B's norm over A's at the end."""
    alignment: float = 0.98
    """Of kernels, at every rank."""
    kernel_slope: float = -0.5
    """Of log kernel error on log rank."""

    def floor(self, arm: Arm, largest_batch: int) -> float:
        """Final loss at LR*; arms at equal steps meet the others at the largest batch, where they are the same."""
        if arm.variant == USUAL[arm.method]:
            faithful = self.floor(replace(arm, variant=""), largest_batch)
            return START_LOSS - self.swallowed.trajectory * (START_LOSS - faithful)
        if arm.method == "full":
            return FLOOR
        further = self.interaction * math.log2((arm.rank or 1) / REFERENCE_RANK)
        doublings = math.log2(arm.batch_size / REFERENCE_BATCH)
        growth = (self.batch_growth + further) * doublings
        if arm.variant == EQUAL_STEPS:
            most = math.log2(largest_batch / REFERENCE_BATCH)
            growth = (self.batch_growth + further) * most - (self.equal_growth + further) * (most - doublings)
        return FLOOR + self.gap(arm) + growth

    def gap(self, arm: Arm) -> float:
        """What an arm loses against full fine-tuning, whatever its batch."""
        if arm.method == "full":
            return 0.0
        gaps: dict[tuple[str, ...], float] = {("attention",): self.attention_gap, ("mlp",): self.mlp_gap}
        return self.regret + gaps.get(arm.targets, 0.0)

    def curve(self, arm: Arm, steps: Sequence[int], ranks: Sequence[int], largest_batch: int) -> Floats:
        """Loss at LR* over steps, without noise; `ranks` are the study's, ascending."""
        logs = np.log(np.maximum(steps, 1) / arm.steps)
        curve = self.floor(arm, largest_batch) - LOG_STEP_DROP * logs
        if arm.rank is None:
            return curve
        below = 0.0 if len(ranks) < 2 else math.log(ranks[-1] / arm.rank) / math.log(ranks[-1] / ranks[0])
        if arm.steps <= EARLY_STEPS:
            curve -= (START_LOSS - curve) * self.early_difference * below
        if self.departure_slope is not None and arm.rank != ranks[-1]:
            departs = math.log(FIRST_DEPARTURE) + self.departure_slope * math.log(arm.rank)
            curve += DEPARTURE_GROWTH * np.maximum(0.0, logs - departs)
        return curve
