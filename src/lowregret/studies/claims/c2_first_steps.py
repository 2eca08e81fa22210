"""C2: in its first steps LoRA learns equally fast at every rank (paper, figure 9)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowregret.studies.claims.arms import Found, by_rank
from lowregret.studies.estimators import pointwise_minimum
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Outcome
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, Surface, aligned, surfaces
from lowregret.studies.verdicts import Weighed, judged, weigh

QUESTION = "Do all ranks learn equally fast in the first steps?"
FIRST_STEPS = 20
"""The claim is about no later step (science.md, C2)."""
LEAST_SEEDS = 5


def c2(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """Every rank's loss drop equals the largest rank's (science.md, C2).

    Rule: the relative difference of the drop of test NLL, at one learning rate and the last measured step up to 20,
    lies within +-`early_drop` at every rank (TOST, 5 %, at least 5 seeds). All must pass; one outside contradicts.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        found = by_rank(aligned(surfaces(outcomes), max(LEAST_SEEDS, margins.least_seeds)))
        if len(found) < 2:
            raise Refused(f"{len(found)} ranks, and the rule compares at least 2", "more ranks")
        drops = {arm.rank: _drop(surface) for arm, surface in _at_one_rate(found).items()}
        reference = drops.popitem()
        parts = [
            weigh(
                f"relative difference of the loss drop, rank {rank} to rank {reference[0]}",
                drop / reference[1] - 1,
                -margins.early_drop,
                margins.early_drop,
                margins=margins,
            )
            for rank, drop in drops.items()
        ]
        return Weighed(parts=tuple(parts), used=tuple(found.values()))

    return judged("C2", QUESTION, outcomes, rule, model=model)


def _at_one_rate(found: Found) -> Found:
    rates = {surface.rates for surface in found.values()}
    if len(rates) > 1 or any(len(own) != 1 for own in rates):
        raise Refused("the ranks were not all trained at the same one learning rate", "a fixed grid of one rate")
    return found


def _drop(surface: Surface) -> Floats:
    steps, losses = pointwise_minimum(surface)
    early = [index for index, step in enumerate(steps) if 0 < step <= FIRST_STEPS]
    if steps[0] != 0 or not early:
        raise Refused(f"no loss before and within the first {FIRST_STEPS} steps", "evaluate at step 0 and every step")
    before, after = losses[:, 0], losses[:, early[-1]]
    if not (np.isfinite(before) & (after < before)).all():
        raise Refused(f"the loss of {surface.arm.label} does not fall in the first steps", "another learning rate")
    return before - after
