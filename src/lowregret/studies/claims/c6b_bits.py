"""C6b: an adapter stores so and so many bits a parameter (Allen-Zhu and Li: about 2 in long training)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lowregret.studies.claims.arms import ALPHA
from lowregret.studies.estimators import slopes
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, Surface, aligned, surfaces
from lowregret.studies.verdicts import Weighed, judged, weigh

QUESTION = "Does an adapter parameter store 0.5 to 2 bits?"
SATURATED = 0.9
"""Facts are enough where the most that an adapter stored is at most this share of the most it was offered."""


def c6b(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """Bits stored at saturation grow by 0.5 to 2 with each adapter parameter (science.md, C6b).

    Of each adapter and seed the most bits over numbers of facts and learning rates is taken; an adapter that stored
    nearly all it was offered says nothing about its capacity and is refused.

    Rule: the 90 % t interval of the slope on adapter parameters lies inside `bits_low`..`bits_high` (TOST, 5 %).
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        found = aligned(_measured(outcomes), margins.least_seeds)
        by_size: dict[int, list[Surface]] = {}
        for arm, surface in found.items():
            by_size.setdefault(arm.params, []).append(surface)
        if len(by_size) < 2:
            raise Refused(f"{len(by_size)} sizes of adapter, and a slope needs 2", "more ranks")
        most = np.stack([_most_bits(own) for own in by_size.values()])
        part = weigh(
            "bits stored with each further adapter parameter",
            slopes([float(params) for params in by_size], most),
            margins.bits_low,
            margins.bits_high,
            margins=margins,
        )
        each = [
            (f"bits a parameter at {params} parameters", float(row.mean()) / params)
            for params, row in zip(by_size, most, strict=True)
        ]
        return Weighed(parts=(part,), used=tuple(found.values()), details=tuple(each))

    return judged("C6b", QUESTION, outcomes, rule, model=model)


def _measured(outcomes: Sequence[Outcome]) -> Mapping[Arm, Surface]:
    kept = [o for o in outcomes if o.stored_bits is not None and o.arm.method == "lora" and o.arm.alpha == ALPHA]
    if not kept:
        raise Refused("no cell says how many bits it stored", "a capacity study: random facts, N H - NLL")
    return surfaces(kept)


def _most_bits(found: Sequence[Surface]) -> Floats:
    """Per seed, over numbers of facts and learning rates."""
    offered = max(outcome.offered_bits or 0.0 for surface in found for outcome in surface.outcomes)
    stored = [
        np.array([outcome.stored_bits or 0.0 for outcome in surface.outcomes]).reshape(surface.validation.shape)
        for surface in found
    ]
    most = np.concatenate(stored, axis=1).max(axis=1)
    if float(most.mean()) > SATURATED * offered:
        raise Refused(
            f"{found[0].arm.label} stored {most.mean():.3g} of {offered:.3g} bits: it is not full",
            f"facts of {offered * 2:.3g} bits and more for {found[0].arm.label}",
        )
    return most
