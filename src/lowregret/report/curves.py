"""The series behind the figures: what is drawn, in which order and colour. No drawing here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowregret.report.findings import BASE, SlotFinding, rank_of, slot_order
from lowregret.specs import ResolvedPlan
from lowregret.store import EvalRow, MetricRow

STEP_ZERO = 0.5
"""Where step 0 stands on the logarithmic axis of steps."""

# Five points of a perceptually ordered ramp (blue to yellow by way of green) that stays ordered for colour-blind
# readers and in print; dark pages use its light part, light pages its dark part.
_RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_LIGHT_PAGE, _DARK_PAGE = (0.05, 0.78), (0.38, 1.0)
_FULL_LIGHT, _FULL_DARK = "#d55e00", "#ff9d4d"
_DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a figure.

    >>> Curve(slot="r8", split="test", steps=(0, 1), values=(2.0, 1.5)).values[-1]
    1.5
    """

    slot: str
    split: str
    """`train`, `validation`, `test` or the name of a further data set."""
    steps: tuple[int, ...]
    values: tuple[float, ...]
    """Nats per completion token; only finite ones."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a slot looks in every figure: the colour goes with the rank, the dash with the learning rate.

    >>> Style(light="#440154", dark="#21918c", dash="solid").dash
    'solid'
    """

    light: str
    """Colour on a light page."""
    dark: str
    """Colour on a dark page."""
    dash: str
    """`solid`, `dash`, `dot` or `dashdot`."""


@dataclass(frozen=True, kw_only=True)
class RateCurve:
    """Final test NLL of one rank against the learning rate.

    >>> RateCurve(label="rank 8", slots=("a", "b"), rates=(1e-4, 1e-3), values=(1.5, None),
    ...     ended=(None, "diverged")).missing
    ((0.001, 'diverged'),)
    """

    label: str
    slots: tuple[str, ...]
    rates: tuple[float, ...]
    values: tuple[float | None, ...]
    """Nats per token; None where the slot ended early or was not evaluated."""
    ended: tuple[str | None, ...]
    """Why a rate has no value: `diverged` or `stopped early`; None where it was not evaluated (yet)."""

    @property
    def missing(self) -> tuple[tuple[float, str], ...]:
        """Learning rates without a final loss, and why."""
        return tuple((rate, how) for rate, how in zip(self.rates, self.ended, strict=True) if how is not None)


def slot_styles(plan: ResolvedPlan) -> dict[str, Style]:
    """The style of every slot, in the order of the ranks."""
    slots = sorted(plan.spec.slots, key=slot_order)
    ranks = sorted({rank for slot in slots if (rank := rank_of(slot)) is not None})
    styles: dict[str, Style] = {}
    for slot in slots:
        rank = rank_of(slot)
        siblings = [other.name for other in slots if rank_of(other) == rank]
        place = siblings.index(slot.name)
        styles[slot.name] = full_style(place) if rank is None else rank_style(ranks.index(rank), len(ranks), place)
    return styles


def full_style(sibling: int = 0) -> Style:
    """Full fine-tuning; siblings differ by dash."""
    return Style(light=_FULL_LIGHT, dark=_FULL_DARK, dash=_DASHES[sibling % len(_DASHES)])


def rank_style(position: int, num_ranks: int, sibling: int = 0) -> Style:
    """The rank at a position of the sorted ranks; siblings of one rank differ by dash."""
    place = position / max(1, num_ranks - 1)
    dash = _DASHES[sibling % len(_DASHES)]
    return Style(light=_ramp(place, _LIGHT_PAGE), dark=_ramp(place, _DARK_PAGE), dash=dash)


def held_out_curves(evals: Sequence[EvalRow], plan: ResolvedPlan) -> dict[str, tuple[Curve, ...]]:
    """By split, the curves of the slots in the order of the ranks; validation and test come first."""
    splits = list(dict.fromkeys(["validation", "test", *(row.split for row in evals)]))
    slots = [slot.name for slot in sorted(plan.spec.slots, key=slot_order)]
    curves: dict[str, tuple[Curve, ...]] = {}
    for split in splits:
        found = [_curve(evals, slot, split) for slot in slots]
        if any(curve.steps for curve in found):
            curves[split] = tuple(curve for curve in found if curve.steps)
    return curves


def base_nll(evals: Sequence[EvalRow], split: str) -> float | None:
    """NLL of the model without any adapter."""
    rows = [row for row in evals if row.split == split and row.step == 0 and math.isfinite(row.nll)]
    rows.sort(key=lambda row: row.slot != BASE)  # A fresh adapter is the base, where the base has no row of its own.
    return rows[0].nll if rows else None


def training_curves(metrics: Sequence[MetricRow], plan: ResolvedPlan) -> tuple[Curve, ...]:
    """Training loss of every slot, smoothed over about the last fifth of the steps so far."""
    curves: list[Curve] = []
    for slot in sorted(plan.spec.slots, key=slot_order):
        rows = [row for row in metrics if row.slot == slot.name and math.isfinite(row.loss)]
        if rows:
            values = smooth([row.loss for row in rows], [row.tokens for row in rows])
            curves.append(
                Curve(slot=slot.name, split="train", steps=tuple(row.step for row in rows), values=tuple(values))
            )
    return tuple(curves)


def rate_curves(findings: Sequence[SlotFinding]) -> tuple[RateCurve, ...]:
    """Final test NLL against learning rate, where some rank was trained with several; else nothing."""
    groups: dict[int | None, list[SlotFinding]] = {}
    for finding in findings:
        if finding.lr is not None:
            groups.setdefault(finding.rank, []).append(finding)
    if not any(len(group) > 1 for group in groups.values()):
        return ()
    return tuple(
        RateCurve(
            label="full" if rank is None else f"rank {rank}",
            slots=tuple(f.slot for f in group),
            rates=tuple(f.lr for f in group if f.lr is not None),
            values=tuple(f.after for f in group),
            ended=tuple(f.ended for f in group if f.lr is not None),
        )
        for rank, group in groups.items()
    )


def log_step(step: int) -> float:
    """Position of a step on the logarithmic axis."""
    return STEP_ZERO if step == 0 else float(step)


def step_ticks(last: int) -> tuple[int, ...]:
    """Steps to label on the logarithmic axis.

    >>> step_ticks(120)
    (0, 1, 2, 5, 10, 20, 50, 100)
    """
    decades = range(len(str(max(1, last))))
    ticks = [0, *(factor * 10**decade for decade in decades for factor in (1, 2, 5))]
    shown = tuple(tick for tick in ticks if tick <= last)
    return shown if len(shown) <= 12 else (0, *(10**decade for decade in decades if 10**decade <= last))


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Places for labels at rising values: at least `gap` apart, moved as little as possible in the squares.

    >>> spread([1.0, 1.0, 5.0], gap=1.0)
    [0.5, 1.5, 5.0]
    """
    # With the gaps taken out this is a regression by a rising function: neighbours out of order share their mean.
    blocks: list[tuple[float, int]] = []
    for index, value in enumerate(values):
        total, size = value - index * gap, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / size:
            total, size = total + blocks[-1][0], size + blocks[-1][1]
            blocks.pop()
        blocks.append((total, size))
    means = [total / size for total, size in blocks for _ in range(size)]
    return [mean + index * gap for index, mean in enumerate(means)]


def _curve(evals: Sequence[EvalRow], slot: str, split: str) -> Curve:
    rows = [row for row in evals if (row.slot, row.split) == (slot, split) and math.isfinite(row.nll)]
    return Curve(slot=slot, split=split, steps=tuple(r.step for r in rows), values=tuple(r.nll for r in rows))


def smooth(losses: Sequence[float], tokens: Sequence[int]) -> list[float]:
    """Causal mean weighted by tokens; its window grows with the step, so that its lag is even on a log axis."""
    smoothed: list[float] = []
    total = weight = 0.0
    for index, (loss, count) in enumerate(zip(losses, tokens, strict=True), start=1):
        keep = 1 - 1 / (1 + index / 5)
        total, weight = keep * total + count * loss, keep * weight + count
        smoothed.append(total / weight if weight else loss)
    return smoothed


def _ramp(place: float, part: tuple[float, float]) -> str:
    """Colour at a place from 0 to 1 of a part of the ramp."""
    at = (part[0] + place * (part[1] - part[0])) * (len(_RAMP) - 1)
    low = min(int(at), len(_RAMP) - 2)
    mixed = (round(a + (b - a) * (at - low)) for a, b in zip(_RAMP[low], _RAMP[low + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
