"""C8: LoRA pays more than FullFT for a large batch, and a higher rank does not help (paper, figure 3).

Nobody has separated large batches from the few steps that they leave (10,000 examples at batch 256 are 39 steps); the
control trains every batch size for equally many steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lowregret.studies.claims.arms import ALPHA, Found, chosen, only
from lowregret.studies.estimators import grid_sizes, slopes, tuned_differences
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, aligned, surfaces
from lowregret.studies.verdicts import Weighed, judged, weigh

QUESTION = "Does a large batch cost LoRA more than FullFT, equally at every rank, also at equal numbers of steps?"
EQUAL_STEPS = "equal steps"
"""Variant of the control; the largest batch of the main arms is its own."""


def c8(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """The gap to FullFT grows with batch size, at every rank alike, and does so at equal steps too (science.md, C8).

    The growth is the least-squares slope of the gap of tuned test losses on log2 batch, times the range of log2 batch.

    Rule: three parts, all needed: growth above `batch_growth`, averaged over ranks (one-sided t, 5 %); the same at
    equal steps; and no interaction: the change of the growth from the lowest to the highest rank lies within +-`parity`
    (TOST, 5 %). Other variants, such as a larger initial slope, stand in the details.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        arms = chosen(surfaces(outcomes), lambda arm: arm.method == "full" or arm.alpha == ALPHA)
        found = aligned(arms, margins.least_seeds)
        main = _growth(chosen(found, lambda arm: not arm.variant))
        equal = _growth(_control(found))
        if len(main) < 2:
            raise Refused("one rank, and the interaction with rank needs 2", "more ranks")
        ranks = np.log2(list(main))
        interaction = slopes(ranks, np.stack(list(main.values()))) * float(ranks.max() - ranks.min())
        parity = margins.parity
        growth = "growth of the gap to FullFT from the smallest to the largest batch"
        least = margins.batch_growth
        parts = (
            weigh(f"{growth}, nats a token", _mean(main), least, math.inf, margins=margins),
            weigh(f"{growth} at equal steps, nats a token", _mean(equal), least, math.inf, margins=margins),
            weigh("change of that growth over the ranks, nats a token", interaction, -parity, parity, margins=margins),
        )
        return Weighed(parts=parts, used=tuple(found.values()), details=(*_others(found), *grid_sizes(found)))

    return judged("C8", QUESTION, outcomes, rule, model=model)


def _control(found: Found) -> Found:
    steps = {arm.steps for arm in found if arm.variant == EQUAL_STEPS}
    if not steps:
        raise Refused("the control with equal steps is missing", f"arms with variant {EQUAL_STEPS!r}")
    return chosen(found, lambda arm: arm.variant == EQUAL_STEPS or (not arm.variant and arm.steps in steps))


def _growth(found: Found) -> dict[int, Floats]:
    """By rank, how much the gap grows over the range of batch sizes; per seed."""
    by_rank: dict[int, list[Arm]] = {}
    for arm in found:
        if arm.rank is not None:
            by_rank.setdefault(arm.rank, []).append(arm)
    growth: dict[int, Floats] = {}
    for rank, arms in by_rank.items():
        batches = np.log2([arm.batch_size for arm in arms])
        if len(set(batches)) < 2 or len(set(batches)) < len(batches):
            raise Refused(f"rank {rank} has no two batch sizes, or one twice", "two or more batch sizes for each rank")
        gaps = [_gap(found, arm) for arm in arms]
        growth[rank] = slopes(batches, np.stack(gaps)) * float(batches.max() - batches.min())
    return growth


def _gap(found: Found, arm: Arm) -> Floats:
    beside = chosen(
        found, lambda other: other.method == "full" and (other.batch_size, other.steps) == (arm.batch_size, arm.steps)
    )
    _, full = only(beside, f"FullFT at batch {arm.batch_size}")
    return tuned_differences(found[arm], full)


def _mean(growth: dict[int, Floats]) -> Floats:
    return np.mean(list(growth.values()), axis=0)


def _others(found: Found) -> tuple[tuple[str, float], ...]:
    """The growth in other variants, against the main arms of FullFT."""
    variants = sorted({arm.variant for arm in found} - {"", EQUAL_STEPS})
    details: list[tuple[str, float]] = []
    for variant in variants:
        wanted = {(variant, "lora"), ("", "full")}
        own = {arm: surface for arm, surface in found.items() if (arm.variant, arm.method) in wanted}
        details.append((f"growth of the gap, {variant}", float(np.mean(_mean(_growth(own))))))
    return tuple(details)
