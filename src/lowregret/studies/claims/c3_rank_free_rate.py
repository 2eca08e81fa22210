"""C3: the best learning rate hardly depends on the rank, because alpha does not (paper, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence

from lowregret.studies.claims.arms import Found, by_rank, chosen
from lowregret.studies.estimators import grid_sizes, slopes_on_rank
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.surface import Refused, Surface, aligned, surfaces
from lowregret.studies.verdicts import Evidence, Weighed, judged, weigh

QUESTION = "Is the best learning rate nearly the same at every rank from 4 up?"
LEVEL = 0.025
"""Each side of the 95 % interval that the protocol names."""
LEAST_RANK = 4
"""Rank 1 is lower, as the paper says itself."""
LEAST_SEEDS = 5
TIED = "alpha = r"
"""Variant of the arms of the positive control."""


def c3(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """The slope of log LR* on log rank is about zero (science.md, C3).

    Rule: the 95 % t interval over at least 5 seeds of the slope over ranks from 4 up lies inside +-`rank_slope`
    (2.5 % a side). `supported` also needs the positive control: with alpha = r the slope's 95 % interval must lie below
    the band (-0.4 to -0.5 is expected, more in short runs), else the study could not have seen a dependence.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        needed = max(LEAST_SEEDS, margins.least_seeds)
        found = aligned(_from_rank(surfaces(outcomes)), needed)
        primary, tied = by_rank(found), _tied(found)
        if len(primary) < 2:
            raise Refused(f"{len(primary)} ranks from {LEAST_RANK} up, and a slope needs 2", "more ranks")
        part = _slope("slope of log LR* on log rank", primary, margins)
        control, withheld = _control(tied, margins)
        return Weighed(
            parts=(part,),
            used=(*primary.values(), *tied.values()),
            details=(*_details(control), *grid_sizes(found)),
            withheld=withheld,
        )

    return judged("C3", QUESTION, outcomes, rule, model=model)


def _from_rank(found: Found) -> Found:
    return chosen(found, lambda arm: arm.method == "lora" and (arm.rank or 0) >= LEAST_RANK)


def _tied(found: Found) -> dict[Arm, Surface]:
    """The arms with alpha = r; at rank 32 they are the primary arm, which is not trained twice."""
    tied = chosen(found, lambda arm: arm.variant == TIED)
    shared = chosen(found, lambda arm: not arm.variant and arm.alpha == arm.rank and bool(tied))
    ordered = {**tied, **shared}
    return {arm: ordered[arm] for arm in sorted(ordered, key=lambda arm: arm.rank or 0)}


def _slope(quantity: str, found: Found, margins: Margins) -> Evidence:
    margin = margins.rank_slope
    return weigh(quantity, slopes_on_rank(found), -margin, margin, margins=margins, level=LEVEL)


def _control(tied: Found, margins: Margins) -> tuple[Evidence | None, tuple[str, str] | None]:
    if len(tied) < 2:
        return None, ("the positive control is missing", f"arms with {TIED} at two or more ranks")
    try:
        control = _slope(f"slope with {TIED}", tied, margins)
    except Refused as refused:
        return None, (f"the positive control: {refused.reason}", refused.settles)
    if control.interval[1] < -margins.rank_slope:
        return control, None
    low, high = control.interval
    return control, (
        f"the positive control failed: with {TIED} the slope is {low:.3f} to {high:.3f}, not below the band, so that "
        "this study could not have seen a dependence",
        f"{control.needed} seeds" if control.needed else "a wider range of ranks",
    )


def _details(control: Evidence | None) -> tuple[tuple[str, float], ...]:
    if control is None:
        return ()
    return (
        (f"{control.quantity}: estimate", control.estimate),
        (f"{control.quantity}: low", control.interval[0]),
        (f"{control.quantity}: high", control.interval[1]),
    )
