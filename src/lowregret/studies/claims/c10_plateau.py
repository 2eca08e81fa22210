"""C10: in reinforcement learning LoRA has a wider range of good learning rates than full fine-tuning (paper)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowregret.studies.accuracy import EVEN, Plateau, plateau
from lowregret.studies.claims.arms import by_rank
from lowregret.studies.claims.c9_rl_parity import decisive_rank, smallest_and_full
from lowregret.studies.estimators import grid_sizes
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.surface import Refused, surfaces
from lowregret.studies.verdicts import Weighed, judged, weigh

QUESTION = "In RL, is rank {rank}'s plateau of learning rates wider than full fine-tuning's?"


def c10(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """More decades of learning rates end within `plateau_drop` of the peak than full fine-tuning has (science.md, C10).

    Rule: one-sided t test, 5 %, of the difference in decades, paired by seed, against `plateau_gain` (0), for the
    smallest rank at alpha 32; its mirror image contradicts. All seeds share one grid, which tells the end of a plateau
    only to a spacing where a policy collapses: that error (`accuracy.plateau`) is added to the seeds' in quadrature, so
    that a coarse grid decides nothing. Both ends must lie inside the grid in both arms, and both grids be evenly
    spaced alike. Other ranks stand in the details.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        smallest, full = smallest_and_full(surfaces(outcomes), margins.least_seeds)
        wide, reference = (plateau(surface, drop=margins.plateau_drop) for surface in (smallest, full))
        if abs(wide.spacing - reference.spacing) > EVEN * reference.spacing:
            raise Refused("the rates of the two arms are not spaced alike", "the rates that the wider grid lacks")
        error = math.hypot(wide.error, reference.error)
        part = weigh(
            f"decades of good learning rates, rank {smallest.arm.rank} minus FullFT",
            wide.decades - reference.decades,
            margins.plateau_gain,
            math.inf,
            margins=margins,
            shared_error=error,
        )
        details = (
            _width("full", reference),
            _width(smallest.arm.label, wide),
            *_of_others(outcomes, smallest.arm, margins),
            ("error that the grid leaves, decades", error),
            ("decades between rates", reference.spacing),
        )
        used = {one.arm: one for one in (smallest, full)}
        return Weighed(parts=(part,), used=tuple(used.values()), details=(*details, *grid_sizes(used)))

    return judged("C10", QUESTION.format(rank=decisive_rank(outcomes)), outcomes, rule, model=model)


def _width(label: str, found: Plateau) -> tuple[str, float]:
    return f"plateau of {label}, decades", float(found.decades.mean())


def _of_others(outcomes: Sequence[Outcome], decisive: Arm, margins: Margins) -> list[tuple[str, float]]:
    """The other ranks; one whose plateau is not inside its grid is left out: it does not decide."""
    details: list[tuple[str, float]] = []
    for arm, surface in by_rank(surfaces(outcomes)).items():
        if arm == decisive:
            continue
        try:
            details.append(_width(arm.label, plateau(surface, drop=margins.plateau_drop)))
        except Refused:
            continue
    return details
