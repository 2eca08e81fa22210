"""What bf16 swallows: forward fidelity over steps and rates, the share of the loss drop, and where LR* goes (C13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lowregret.report.curves import Style, full_style, log_step, rank_style
from lowregret.report.protocols.asked import Asked
from lowregret.report.protocols.chart import Chart, Level, Series, step_axis, value_axis, with_intervals
from lowregret.specs import Arm
from lowregret.studies.claims.c13_swallowed import in_question
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, Surface, aligned, surfaces
from lowregret.studies.swallowing import (
    Pair,
    arithmetics,
    cells_at,
    cut_at,
    forward,
    labels,
    log10_shift,
    measured_steps,
    pairs,
    shares,
    values_of,
)

LEAST_SEEDS = 2
"""Of an interval."""
SEEDS = "mean over seeds with the 95 % t interval"


def swallowed(asked: Asked) -> tuple[Chart, ...]:
    """Every figure of a fidelity question but the loss curves; none where no arm has both arithmetics."""
    try:
        arms = in_question(asked.surfaces)
        found = pairs(arms if _one_seed(asked) else aligned(arms, LEAST_SEEDS))
    except Refused:
        return ()
    longest = max(pair.arm.steps for pair in found)
    last = [pair for pair in found if pair.arm.steps == longest]
    names = labels(last)
    charts = [
        *(chart for pair in last for chart in _forward(asked, pair, names[pair.arm])),
        *_share_against_steps(asked, last, names),
        *_share_against_rate(asked, last, names),
        *_shift_against_steps(asked),
    ]
    return tuple(charts)


def _one_seed(asked: Asked) -> bool:
    return len({outcome.seed for outcome in asked.outcomes}) == 1


def _forward(asked: Asked, pair: Pair, label: str) -> list[Chart]:
    """Forward fidelity against steps at the pair's rate, and against rates after the first measured step."""
    names = arithmetics(cells_at(pair.faithful, pair.column))
    styles = {name: rank_style(place, len(names), place) for place, name in enumerate(names)}
    by_step: dict[str, dict[float, Floats]] = {name: {} for name in names}
    steps = measured_steps(pair.faithful, pair.column)
    for name in names:
        for step in steps:
            rows = forward(pair.faithful, pair.column, step=step, arithmetic=name)
            if rows:
                by_step[name][log_step(step)] = values_of(rows)
    if not steps:
        return []
    by_rate = {name: _by_rate(pair.faithful, name, steps[0]) for name in names}
    key = label.replace(" ", "-")
    told = f"of {label}'s fp32 masters, trained in faithful arithmetic; {SEEDS}."
    return [
        Chart(
            key=f"{asked.key}-forward-{key}",
            title=f"Forward fidelity of {label} against steps",
            x_title="optimizer steps (log scale)",
            y_title="loss drop over the drop in fp32",
            x_log=True,
            series=_lines(by_step, styles),
            caption=f"Share of the fp32 loss drop that each bf16 arithmetic lets act, {told} Learning rate "
            f"{pair.rate:.3g}, which serves faithful and usual arithmetic best. Shaded: passes.",
            ticks=step_axis(steps[-1])[1:],
            levels=(_passes(asked),),
        ),
        Chart(
            key=f"{asked.key}-forward-rates-{key}",
            title=f"Forward fidelity of {label} after step {steps[0]}, against learning rate",
            x_title="learning rate (log scale)",
            y_title="loss drop over the drop in fp32",
            x_log=True,
            series=_lines(by_rate, styles),
            caption=f"As above, {told} Left out: rates at which the fp32 loss rises in some seed, which leaves no drop "
            "to take a share of.",
            levels=(_passes(asked),),
        ),
    ]


def _by_rate(surface: Surface, arithmetic: str, step: int) -> dict[float, Floats]:
    points: dict[float, Floats] = {}
    for column, rate in enumerate(surface.rates):
        rows = forward(surface, column, step=step, arithmetic=arithmetic)
        if rows and all(row.fp32_drop > 0 for row in rows):
            points[rate] = values_of(rows)
    return points


def _lines(by_name: Mapping[str, Mapping[float, Floats]], styles: Mapping[str, Style]) -> tuple[Series, ...]:
    return tuple(with_intervals(name, points, styles[name], kind="line") for name, points in by_name.items() if points)


def _passes(asked: Asked) -> Level:
    margin = asked.margins.fidelity
    return Level(axis="y", low=1 - margin, high=1 + margin, text=f"acts: 1 ± {margin:g}")


def _share_against_steps(asked: Asked, found: Sequence[Pair], names: Mapping[Arm, str]) -> list[Chart]:
    """Trajectory fidelity at every evaluated step: the dead zone."""
    series: list[Series] = []
    last = 1
    for pair in found:
        points = {log_step(step): values for step, values in _shares(pair, pair.column).items()}
        if points:
            last = max(last, pair.arm.steps)
            series.append(
                with_intervals(f"{names[pair.arm]} at {pair.rate:.2g}", points, _style(asked, pair), kind="line")
            )
    if not series:
        return []
    chart = Chart(
        key=f"{asked.key}-share-steps",
        title="Share of the faithful loss drop that usual arithmetic realises, against steps",
        x_title="optimizer steps (log scale)",
        y_title="test loss drop over that of the faithful arm",
        x_log=True,
        series=tuple(series),
        caption=f"Each arm trained and evaluated in its own arithmetic, same learning rate, paired by seed; {SEEDS}. "
        "Shaded: as much as the faithful arm.",
        ticks=step_axis(last)[1:],
        levels=(_passes(asked),),
    )
    return [chart]


def _share_against_rate(asked: Asked, found: Sequence[Pair], names: Mapping[Arm, str]) -> list[Chart]:
    """Trajectory fidelity at the end, at every learning rate."""
    series: list[Series] = []
    for pair in found:
        points: dict[float, Floats] = {}
        for column, rate in enumerate(pair.faithful.rates):
            by_step = _shares(pair, column)
            if by_step:
                points[rate] = by_step[max(by_step)]
        if points:
            series.append(with_intervals(names[pair.arm], points, _style(asked, pair), kind="line"))
    if not series:
        return []
    chart = Chart(
        key=f"{asked.key}-share-rates",
        title="Share of the faithful loss drop at the end, against learning rate",
        x_title="learning rate (log scale)",
        y_title="test loss drop over that of the faithful arm",
        x_log=True,
        series=tuple(series),
        caption=f"Each arm trained and evaluated in its own arithmetic, paired by seed; {SEEDS}. A rate at which the "
        "faithful arm's loss does not fall, or a cell diverged, is left out. Shaded: as much as the faithful arm.",
        levels=(_passes(asked),),
    )
    return [chart]


def _shares(pair: Pair, column: int) -> dict[int, Floats]:
    """By step, the shares of all seeds; steps at which some seed has none are left out."""
    try:
        steps, values = shares(pair, column)
    except Refused:
        return {}
    return {step: values[:, k] for k, step in enumerate(steps) if np.isfinite(values[:, k]).all()}


def _shift_against_steps(asked: Asked) -> list[Chart]:
    """By how much LR* differs between the arithmetics, from the cells as they were after each evaluated step."""
    steps = sorted({step for outcome in asked.outcomes for step in outcome.steps if step > 0})
    lines: dict[Arm, dict[float, Floats]] = {}
    names: dict[Arm, str] = {}
    for step in steps:
        shifts = _shifts(asked, step)
        named = labels([pair for pair, _ in shifts])
        for pair, shift in shifts:
            arm = replace(pair.arm, steps=0)
            lines.setdefault(arm, {})[log_step(step)] = shift
            names[arm] = named[pair.arm]
    if not lines:
        return []
    margin = asked.margins.rate_shift
    ranks = sorted(arm.rank for arm in lines if arm.rank is not None)
    styles = {arm: full_style() if arm.rank is None else rank_style(ranks.index(arm.rank), len(ranks)) for arm in lines}
    chart = Chart(
        key=f"{asked.key}-shift",
        title="How much higher LR* lies in usual arithmetic, by run length",
        x_title="optimizer steps (log scale)",
        y_title="decades of LR*, usual minus faithful",
        x_log=True,
        series=tuple(with_intervals(names[arm], points, styles[arm]) for arm, points in lines.items()),
        caption="LR*: vertex of a quadratic in log LR fitted to each seed's validation loss after so many steps (at a "
        f"constant learning rate, that of a run of this length); paired by seed, {SEEDS}. Lengths at which LR* can't "
        "be read, such as minima on the grid's edge, are left out. Shaded: not moved.",
        ticks=value_axis([x for points in lines.values() for x in points]),
        levels=(Level(axis="y", low=-margin, high=margin, text=f"not moved: ±{margin:g}"),),
    )
    return [chart]


def _shifts(asked: Asked, step: int) -> list[tuple[Pair, Floats]]:
    """Of each pair whose LR* can be read after a step; of several run lengths the longest tells it."""
    longest = [outcome for outcome in asked.outcomes if outcome.arm.steps == _longest(asked)]
    try:
        found = pairs(aligned(in_question(surfaces(cut_at(longest, step))), LEAST_SEEDS))
    except Refused:
        return []
    shifts: list[tuple[Pair, Floats]] = []
    for pair in found:
        try:
            shifts.append((pair, log10_shift(pair)))
        except Refused:
            continue
    return shifts


def _longest(asked: Asked) -> int:
    return max(outcome.arm.steps for outcome in asked.outcomes)


def _style(asked: Asked, pair: Pair) -> Style:
    """That of the faithful arm in the curves."""
    return asked.styles.get(pair.arm) or full_style()
