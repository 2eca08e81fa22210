"""The series behind the figures of a run of RL: held-out accuracy, and what its steps logged. No drawing here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from lowregret.report.curves import Curve, smooth
from lowregret.report.findings import slot_order
from lowregret.report.rl_findings import judged_rows
from lowregret.specs import ResolvedPlan
from lowregret.store.rows import AccuracyRow, PolicyRow

HELD_OUT = ("validation", "test")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Something that every step of RL logs of a slot.

    >>> MEASURES[0].key
    'reward'
    """

    key: str
    title: str
    label: str
    """Of the axis, with its unit."""
    of: Callable[[PolicyRow], float | None]


MEASURES = (
    Measure(key="reward", title="Reward of the drawn completions", label="mean reward", of=lambda row: row.reward),
    Measure(key="pass-rate", title="Completions that pass", label="pass rate", of=lambda row: row.pass_rate),
    Measure(key="entropy", title="Entropy of the policy", label="nats a token", of=lambda row: row.entropy),
    Measure(key="kl", title="Divergence from the base", label="KL, nats a token", of=lambda row: row.kl),
    Measure(key="length", title="Length of a completion", label="tokens", of=lambda row: row.mean_length),
    Measure(key="truncated", title="Completions cut off", label="share", of=lambda row: row.truncated),
    Measure(
        key="without-signal",
        title="Groups without signal",
        label="share of groups",
        of=lambda row: row.without_signal / max(1, row.groups),
    ),
)
"""A measure that no step logged is left out, and so is the pass rate where it is the reward."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A measure's curves.

    >>> Series(measure=MEASURES[0], raw=()).smoothed
    ()
    """

    measure: Measure
    raw: tuple[Curve, ...]
    """As the steps logged it."""

    @property
    def smoothed(self) -> tuple[Curve, ...]:
        """Over about the last fifth of the steps so far; a constant stays one, to the last digit."""
        return tuple(
            curve
            if len(set(curve.values)) == 1
            else replace(curve, values=tuple(smooth(curve.values, [1] * len(curve.values))))
            for curve in self.raw
        )


def accuracy_curves(rows: Sequence[AccuracyRow], plan: ResolvedPlan) -> dict[str, tuple[Curve, ...]]:
    """By split, the curves of the slots in the order of the ranks."""
    judged = judged_rows(rows, plan.spec)
    curves: dict[str, tuple[Curve, ...]] = {}
    for split in HELD_OUT:
        found: list[Curve] = []
        for slot in _slots(plan):
            own = [row for row in judged if (row.slot, row.split) == (slot, split)]
            if own:
                steps, values = tuple(row.step for row in own), tuple(row.accuracy for row in own)
                found.append(Curve(slot=slot, split=split, steps=steps, values=values))
        if found:
            curves[split] = tuple(found)
    return curves


def base_accuracy(rows: Sequence[AccuracyRow], plan: ResolvedPlan, split: str) -> float | None:
    """Accuracy before training: a fresh adapter is the base."""
    judged = judged_rows(rows, plan.spec)
    return next((row.accuracy for row in judged if row.split == split and row.step == 0), None)


def step_series(policy: Sequence[PolicyRow], accuracy: Sequence[AccuracyRow], plan: ResolvedPlan) -> tuple[Series, ...]:
    """What the steps logged, a measure each; the divergence is the evaluations' where no step has it."""
    same = all(math.isclose(row.reward, row.pass_rate) for row in policy)
    series: list[Series] = []
    for measure in MEASURES:
        curves = _curves(policy, plan, measure.of)
        if measure.key == "kl" and not curves:
            curves = _divergences(accuracy, plan)
        if curves and not (measure.key == "pass-rate" and same):
            series.append(Series(measure=measure, raw=curves))
    return tuple(series)


def bit_curves(policy: Sequence[PolicyRow], plan: ResolvedPlan) -> tuple[Curve, ...]:
    """Bits in the rewards so far, an upper bound, of every slot."""
    curves = _curves(policy, plan, lambda row: row.bits)
    return tuple(replace(curve, values=tuple(accumulate(curve.values))) for curve in curves)


def _divergences(accuracy: Sequence[AccuracyRow], plan: ResolvedPlan) -> tuple[Curve, ...]:
    """On drawn answers to the validation split."""
    curves: list[Curve] = []
    for slot in _slots(plan):
        own = [row for row in accuracy if (row.slot, row.split) == (slot, "validation")]
        known = [(row.step, row.kl) for row in own if row.kl is not None and math.isfinite(row.kl)]
        if known:
            steps, values = zip(*known, strict=True)
            curves.append(Curve(slot=slot, split="validation", steps=tuple(steps), values=tuple(values)))
    return tuple(curves)


def _curves(
    policy: Sequence[PolicyRow], plan: ResolvedPlan, of: Callable[[PolicyRow], float | None]
) -> tuple[Curve, ...]:
    curves: list[Curve] = []
    for slot in _slots(plan):
        points = [(row.step, of(row)) for row in policy if row.slot == slot]
        known = [(step, value) for step, value in points if value is not None and math.isfinite(value)]
        if known:
            steps, values = zip(*known, strict=True)
            curves.append(Curve(slot=slot, split="train", steps=tuple(steps), values=tuple(values)))
    return tuple(curves)


def _slots(plan: ResolvedPlan) -> list[str]:
    return [slot.name for slot in sorted(plan.spec.slots, key=slot_order)]
