"""C5: the LoRA/FullFT ratio of best learning rates falls with run length (paper: 15x below 100 steps, then 10x)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lowregret.studies.claims.arms import Found, chosen, only, primary_full, primary_lora
from lowregret.studies.estimators import grid_sizes, log_ratios, slopes
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, aligned, surfaces
from lowregret.studies.verdicts import Weighed, judged, weigh

QUESTION = "Does the LoRA/FullFT ratio of best learning rates fall with run length?"


def c5(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """The slope of log ratio on log steps is negative (science.md, C5).

    Rule: one-sided t test over seeds, 5 %, of the slope against `length_slope` (0), at alpha 32, averaged within a seed
    over bases, batches and ranks; its mirror image contradicts.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        found = aligned(
            chosen(surfaces(outcomes), lambda arm: primary_lora(arm) or primary_full(arm)), margins.least_seeds
        )
        groups: dict[tuple[int, int, int | None], list[Arm]] = {}
        for arm in found:
            if arm.method == "lora":
                groups.setdefault((arm.width, arm.batch_size, arm.rank), []).append(arm)
        values = [_slope(found, arms) for arms in groups.values() if len(arms) > 1]
        if not values:
            raise Refused("one run length, and a slope needs 2", "further run lengths")
        part = weigh(
            "slope of log ratio on log steps",
            np.mean(values, axis=0),
            -math.inf,
            margins.length_slope,
            margins=margins,
        )
        return Weighed(parts=(part,), used=tuple(found.values()), details=grid_sizes(found))

    return judged("C5", QUESTION, outcomes, rule, model=model)


def _slope(found: Found, arms: Sequence[Arm]) -> Floats:
    ratios: list[Floats] = []
    for arm in arms:
        alike = (arm.width, arm.batch_size, arm.steps)
        beside = {
            other: surface
            for other, surface in found.items()
            if other.method == "full" and (other.width, other.batch_size, other.steps) == alike
        }
        _, full = only(beside, f"FullFT with {arm.steps} steps")
        ratios.append(log_ratios(found[arm], full))
    return slopes(np.log([arm.steps for arm in arms]), np.stack(ratios))
