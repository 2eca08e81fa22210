"""Margins of the claims, set before a study runs (science.md section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from lowregret.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Margins:
    """What counts as equal, and how sure a verdict must be.

    >>> Margins.of([("parity", 0.01)]).parity
    0.01
    """

    level: float = 0.05
    """Probability of a wrong verdict that is accepted, for each of `supported` and `contradicted`."""
    parity: float = 0.005
    """Nats a token under which two tuned losses are equal (C7, C8, certify)."""
    early_drop: float = 0.05
    """Relative difference of the first steps' loss drop under which ranks are equal (C2)."""
    rank_slope: float = 0.143
    """Of log LR* on log rank: a factor of 2 over a factor of 128 in rank (C3)."""
    ratio_low: float = 5.0
    """Smallest LoRA/FullFT ratio of LR* that is near 10 (C4)."""
    ratio_high: float = 20.0
    width_slope: float = 0.25
    """Of log ratio on log width: the band 5..20 about 10 is used up over a factor of 16 in width (C4)."""
    length_slope: float = 0.0
    """Of log ratio on log steps, below which the ratio falls with run length (C5)."""
    departure: float = 0.005
    """Nats a token by which a curve must lie above the reference to have left it, where 3 sigma is less (C6)."""
    bits_low: float = 0.5
    """Bits an adapter parameter stores, least (C6b)."""
    bits_high: float = 2.0
    batch_growth: float = 0.0
    """Nats by which the gap to FullFT must grow from the smallest to the largest batch to be a penalty (C8)."""
    multiply_adds: float = 0.72
    """LoRA's counted arithmetic over FullFT's that still is `about 2/3` (C12)."""
    alignment: float = 0.9
    """Least cosine of the adapter's tangent kernel with its expectation, from rank 64 up (C11)."""
    kernel_slope: float = 0.1
    """Distance from -1/2 that the slope of log kernel error on log rank may have (C11)."""
    rl_parity: float = 0.03
    """Difference of held-out accuracy under which two arms of RL are equal (C9, C7rl)."""
    steps_ratio: float = 1.5
    """LoRA's steps to the threshold over FullFT's that still are no more (C9b). Ours: half as long again is what a user
    would notice, and what evaluations a tenth of a run apart can tell from 1."""
    plateau_drop: float = 0.02
    """Accuracy under the peak that still lies on the plateau of learning rates (C10)."""
    plateau_gain: float = 0.0
    """Decades by which LoRA's plateau must be wider than FullFT's (C10)."""
    fidelity: float = 0.05
    """Distance from 1 within which an arithmetic lets an update act; below, it swallows (C13, C13b)."""
    rate_shift: float = 0.1
    """Decades by which LR*, or the LoRA/FullFT ratio of LR*, must differ between two arithmetics to have moved (C13c
    to C13e): a factor of 1.26, less than half of a grid's spacing."""
    least_seeds: float = 3
    """Seeds under which no verdict is given; C2 and C3 ask for 5, C9 and C9b for 8 whatever stands here."""
    power: float = 0.8
    """Chance of a verdict that the number of seeds in `settles` is to give."""

    @classmethod
    def of(cls, named: Sequence[tuple[str, float]]) -> Margins:
        """The defaults with the margins that a study's spec names.

        Raises:
            SpecError: a name is not one of these, or a level or power no probability.
        """
        known = [field.name for field in fields(cls)]
        for name, value in named:
            if name not in known:
                raise SpecError(f"margins: {name!r} is not known; give {', '.join(known)}")
            if name in ("level", "power") and not 0 < value < 1:
                raise SpecError(f"margins.{name}: {value} must lie between 0 and 1")
        return cls(**dict(named))
