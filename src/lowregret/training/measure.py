"""Forward fidelity: how much of a trained update an arithmetic lets act (science.md, "The swallowed update")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowregret.specs.fidelity import FidelityVerdict, fidelity_verdict

RESAMPLES = 2000
"""Bootstrap resamples; the ends of a 95 % interval then move by about 3 % of its width between seeds."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Loss drop of an arithmetic divided by the fp32 drop, same masters, same held-out tokens.

    >>> Fidelity(estimate=1.0, low=0.99, high=1.01, fp32_drop=0.1).verdict
    'passes'
    """

    estimate: float
    low: float
    """Lower end of the 95 % interval, by paired bootstrap over sequences."""
    high: float
    fp32_drop: float
    """Nats per completion token that the update gains in fp32; the scale of the whole question."""

    @property
    def verdict(self) -> FidelityVerdict:
        """By the rule of science.md."""
        return fidelity_verdict(self.estimate, self.low, self.high)


def forward_fidelity(
    *,
    before_fp32: Sequence[float],
    after_fp32: Sequence[float],
    before: Sequence[float],
    after: Sequence[float],
    tokens: Sequence[int],
    seed: int = 0,
) -> Fidelity:
    """Estimate and interval from the summed NLL of each held-out sequence.

    Args:
        before_fp32, after_fp32: nats by sequence without and with the update, in fp32.
        before, after: the same in the arithmetic under test, each against its own loss without the update.
        tokens: completion tokens by sequence.

    Raises:
        ValueError: fewer than two sequences, or an update that moves no loss in fp32.
    """
    if len(tokens) < 2:
        raise ValueError("fidelity needs at least two held-out sequences")
    reference = np.asarray(before_fp32, float) - np.asarray(after_fp32, float)
    if not reference.any():
        raise ValueError("the update moves no loss in fp32, so that there is nothing to compare with")
    tested = np.asarray(before, float) - np.asarray(after, float)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(tokens), (RESAMPLES, len(tokens)))
    ratios = tested[picks].sum(1) / reference[picks].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Fidelity(
        estimate=float(tested.sum() / reference.sum()),
        low=float(low),
        high=float(high),
        fp32_drop=float(reference.sum() / np.sum(tokens)),
    )
