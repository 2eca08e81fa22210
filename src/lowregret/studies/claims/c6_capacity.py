"""C6: small ranks run out of capacity first, and leave the common learning curve in order of rank (paper, figure 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lowregret.studies.claims.arms import by_rank, chosen, primary_full
from lowregret.studies.estimators import departure_steps, grid_sizes, spearman
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Outcome
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, aligned, surfaces
from lowregret.studies.verdicts import Evidence, Weighed, judged, weigh

QUESTION = "Do higher ranks leave the common learning curve later?"
LEAST_RANKS = 3
"""Beside the reference: two can stand in order by chance in every one of three seeds."""


def c6(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """Spearman's correlation of rank with departure step is positive (science.md, C6).

    Each rank's curve is its pointwise minimum over learning rates; the reference is that of the largest rank, which
    isolates capacity from what else sets LoRA apart from FullFT (the same against FullFT stands in the details). Rank r
    departs at the first step from which on it stays above by max(3 sigma, `departure`); one that never does ranks last.

    Rule: two tests at 5 %, of which both must reject: a t test over seeds of the mean correlation against 0, and
    Page's test of ordered departures (1963), which does not need the correlations to vary. The mirror image
    contradicts. Where no rank departs, the data does not exceed the adapters' capacity, and nothing is said.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        found = aligned(surfaces(outcomes), margins.least_seeds)
        ranks = by_rank(found)
        if len(ranks) <= LEAST_RANKS:
            raise Refused(f"{len(ranks)} ranks, and the rule needs {LEAST_RANKS + 1}", "more ranks")
        *arms, reference = ranks
        departed = departure_steps([ranks[arm] for arm in arms], ranks[reference], margin=margins.departure)
        if not np.isfinite(departed).any():
            raise Refused(
                f"no rank departs from rank {reference.rank}",
                "data with more bits than the small adapters hold, or smaller ranks",
            )
        logs = np.log([arm.rank or 1 for arm in arms])
        part = _ordered(spearman(logs, departed), len(arms), margins)
        details = [
            (f"departure of {arm.label}, steps (median)", _median(row)) for arm, row in zip(arms, departed, strict=True)
        ]
        for full in chosen(found, primary_full).values():
            every = departure_steps(list(ranks.values()), full, margin=margins.departure)
            correlation = spearman(np.log([arm.rank or 1 for arm in ranks]), every)
            details.append(("Spearman's correlation, FullFT as reference", float(correlation.mean())))
        return Weighed(
            parts=(part,),
            used=tuple(ranks.values()),
            details=(*((name, value) for name, value in details if math.isfinite(value)), *grid_sizes(ranks)),
        )

    return judged("C6", QUESTION, outcomes, rule, model=model)


def _ordered(correlations: Floats, num_ranks: int, margins: Margins) -> Evidence:
    """The t test, made no surer than Page's: under equal departures a correlation has variance 1/(k - 1)."""
    part = weigh("correlation of rank with departure step (Spearman)", correlations, 0.0, math.inf, margins=margins)
    z = float(correlations.mean()) * math.sqrt(len(correlations) * (num_ranks - 1))
    return replace(
        part,
        p_inside=max(part.p_inside, 0.5 * math.erfc(z / math.sqrt(2))),
        p_outside=max(part.p_outside, 0.5 * math.erfc(-z / math.sqrt(2))),
    )


def _median(steps: Floats) -> float:
    return float(np.sort(steps)[len(steps) // 2])
