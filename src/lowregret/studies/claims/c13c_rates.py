"""C13c to C13e: how LR* and the LoRA/FullFT ratio of LR* move between usual and faithful bf16 arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lowregret.studies.best_rate import log_best_rates
from lowregret.studies.claims.c13_swallowed import in_question
from lowregret.studies.estimators import grid_sizes
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, Surface, aligned, surfaces
from lowregret.studies.swallowing import Pair, labels, log10_shift, pairs, shortest
from lowregret.studies.verdicts import Weighed, judged, weigh

RAISES = "Does usual bf16 arithmetic raise {what}'s best learning rate in short runs?"
RATIO = "Is the LoRA/FullFT ratio of best learning rates the same in usual and in faithful bf16 arithmetic?"
NAMES = {"lora": "LoRA", "full": "full fine-tuning"}


def c13c(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """LoRA's LR* lies higher where its output is added in bf16 (science.md, C13).

    Rule: in the shortest runs, averaged over ranks within a seed, log10 LR* in the usual arithmetic minus that in the
    faithful one, paired by seed, exceeds `rate_shift` (one-sided t, 5 %); its mirror image contradicts. Each arm's LR*
    is the vertex of its own quadratic. Longer runs stand in the details.
    """
    return _raised("C13c", "lora", outcomes, margins or Margins(), model)


def c13d(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """Full fine-tuning's LR* lies higher where its copy is rounded to nearest; the rule is that of `c13c`."""
    return _raised("C13d", "full", outcomes, margins or Margins(), model)


def c13e(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """The ratio of LoRA's to full fine-tuning's LR* does not depend on the arithmetic (science.md, C13).

    Rule: in the shortest runs, averaged over ranks within a seed, the decades by which the ratio is higher in the usual
    arithmetic lie within +-`rate_shift` (TOST, 5 %). `contradicted`: part of the ratio that usual arithmetic shows is
    rounding. Details: the ratio in both arithmetics, at every run length.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        found = pairs(aligned(in_question(surfaces(outcomes)), margins.least_seeds))
        short = shortest(found)
        moved = _mean(short, "lora") - _mean(short, "full")
        quantity = f"decades by which the LoRA/FullFT ratio is higher in usual arithmetic, {_steps(short)} steps"
        part = weigh(quantity, moved, -margins.rate_shift, margins.rate_shift, margins=margins)
        used = _used(short)
        details = (*_ratios(found), *grid_sizes(used))
        return Weighed(parts=(part,), used=tuple(used.values()), details=details)

    return judged("C13e", RATIO, outcomes, rule, model=model)


def _raised(claim: str, method: str, outcomes: Sequence[Outcome], margins: Margins, model: str) -> Finding:
    def rule() -> Weighed:
        arms = {arm: own for arm, own in in_question(surfaces(outcomes)).items() if arm.method == method}
        found = pairs(aligned(arms, margins.least_seeds))
        short = shortest(found)
        quantity = f"decades by which {NAMES[method]}'s LR* is higher in usual arithmetic, {_steps(short)} steps"
        part = weigh(quantity, _mean(short, method), margins.rate_shift, math.inf, margins=margins)
        used = _used(short)
        return Weighed(parts=(part,), used=tuple(used.values()), details=(*_each(found), *grid_sizes(used)))

    return judged(claim, RAISES.format(what=NAMES[method]), outcomes, rule, model=model)


def _mean(found: Sequence[Pair], method: str) -> Floats:
    """Shift of log10 LR* over the ranks of a method, per seed."""
    own = [log10_shift(pair) for pair in found if pair.arm.method == method]
    if not own:
        raise Refused(f"no arm of {NAMES[method]} in both arithmetics", "such arms")
    return np.mean(own, axis=0)


def _steps(found: Sequence[Pair]) -> int:
    return found[0].arm.steps


def _used(found: Sequence[Pair]) -> dict[Arm, Surface]:
    return {surface.arm: surface for pair in found for surface in (pair.faithful, pair.usual)}


def _each(found: Sequence[Pair]) -> list[tuple[str, float]]:
    """LR* of every pair in both arithmetics, geometric means over seeds; an arm without one is left out."""
    details: list[tuple[str, float]] = []
    names = labels(found)
    for pair in found:
        for kind, surface in (("faithful", pair.faithful), ("usual", pair.usual)):
            try:
                best = math.exp(float(log_best_rates(surface).mean()))
            except Refused:
                continue
            details.append((f"LR* of {names[pair.arm]}, {pair.arm.steps} steps, {kind}", best))
    return details


def _ratios(found: Sequence[Pair]) -> list[tuple[str, float]]:
    """LoRA's LR* over FullFT's in both arithmetics, by rank and run length."""
    details: list[tuple[str, float]] = []
    names = labels(found)
    full = {_base(pair): pair for pair in found if pair.arm.method == "full"}
    for pair in found:
        beside = full.get(_base(pair))
        if pair.arm.method == "full" or beside is None:
            continue
        for kind in ("faithful", "usual"):
            try:
                logs = log_best_rates(getattr(pair, kind)) - log_best_rates(getattr(beside, kind))
            except Refused:
                continue
            name = f"ratio of LR*, {names[pair.arm]}, {pair.arm.steps} steps, {kind}"
            details.append((name, math.exp(float(logs.mean()))))
    return details


def _base(pair: Pair) -> tuple[int, int, int]:
    """What full fine-tuning must share with an adapter to be compared with it."""
    return (pair.arm.width, pair.arm.batch_size, pair.arm.steps)
