"""Where the best learning rates lie: against rank (paper, figure 2), and LoRA's over full fine-tuning's (LR law)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from lowregret.report.curves import Style, full_style, rank_style
from lowregret.report.protocols.asked import Asked
from lowregret.report.protocols.chart import Chart, Level, Series, dodged, guide, value_axis, with_intervals
from lowregret.specs import Arm
from lowregret.studies.best_rate import log_best_rates
from lowregret.studies.claims.arms import ALPHA
from lowregret.studies.claims.c3_rank_free_rate import TIED
from lowregret.studies.estimators import log_ratios
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, aligned

Line = tuple[int, float]
"""Width and alpha: what sets the lines of a chart of ratios apart."""


def rate_against_rank(asked: Asked) -> tuple[Chart, ...]:
    """LR* against rank with 95 % intervals, with alpha = r as the control and full fine-tuning as a level."""
    lines: dict[str, dict[float, Floats]] = {f"alpha {ALPHA:g}": {}, TIED: {}}
    full: Floats | None = None
    refused: list[str] = []
    for arm, surface in asked.surfaces.items():
        try:
            logs = log_best_rates(surface)
        except Refused as why:
            refused.append(why.reason)
            continue
        if arm.rank is None:
            full = logs
            continue
        if not arm.variant:
            lines[f"alpha {ALPHA:g}"][float(arm.rank)] = logs
        # At rank 32 the control is the primary arm, which is not trained twice.
        if arm.variant == TIED or (arm.alpha == arm.rank and not arm.variant):
            lines[TIED][float(arm.rank)] = logs
    styles = {f"alpha {ALPHA:g}": rank_style(0, 3), TIED: rank_style(1, 3, 1)}
    series = [
        with_intervals(name, dict(sorted(points.items())), styles[name], exponential=True)
        for name, points in lines.items()
        if points
    ]
    if not series:
        return ()
    ranks = [rank for one in series for rank in one.x]
    if full is not None:
        series.append(_level(full, ranks))
    chart = Chart(
        key=f"{asked.key}-best-rate",
        title="Best learning rate against rank",
        x_title="rank (log scale)",
        y_title="LR* (log scale)",
        x_log=True,
        y_log=True,
        series=tuple(series),
        caption="LR*: vertex of a quadratic in log LR fitted to each seed's validation loss; geometric mean over seeds "
        "with the 95 % t interval. With alpha = r the best rate must fall with rank: the control that the study can "
        f"see a dependence.{_left_out(refused)}",
        ticks=value_axis(ranks),
    )
    return (chart,)


def ratios(asked: Asked) -> tuple[Chart, ...]:
    """LoRA's LR* over full fine-tuning's: against run length, and in the longest runs against width."""
    found, refused = _ratios(asked)
    if not found:
        return ()
    styles = _line_styles(found)
    margins = asked.margins
    band = Level(
        axis="y",
        low=margins.ratio_low,
        high=margins.ratio_high,
        text=f"about 10: {margins.ratio_low:g} to {margins.ratio_high:g}",
    )
    length = _against(found, lambda arm: (arm.width, arm.alpha), lambda arm: arm.steps)
    charts = [
        Chart(
            key=f"{asked.key}-length",
            title="LoRA/FullFT ratio of LR* against run length",
            x_title="optimizer steps of the run (log scale)",
            y_title="LR* of LoRA over FullFT's (log scale)",
            x_log=True,
            y_log=True,
            series=dodged([_line(line, points, styles[line]) for line, points in sorted(length.items())]),
            caption="Geometric mean over seeds with the 95 % t interval, paired by seed, by width d of the base and "
            "alpha; lines stand a little apart sideways. Shaded: what counts as about 10."
            f"{_left_out(refused)}",
            ticks=value_axis([x for points in length.values() for x in points]),
            levels=(band,),
        )
    ]
    if len({arm.width for arm in found}) > 1:
        charts.append(_against_width(asked, found, band))
    return tuple(charts)


def _against_width(asked: Asked, found: dict[Arm, Floats], band: Level) -> Chart:
    longest: dict[int, int] = defaultdict(int)
    for arm in found:
        longest[arm.width] = max(longest[arm.width], arm.steps)
    last = {arm: logs for arm, logs in found.items() if arm.steps == longest[arm.width]}
    lines = _against(last, lambda arm: (0, arm.alpha), lambda arm: arm.width)
    widths = sorted({float(arm.width) for arm in last})
    alphas = sorted({alpha for _, alpha in lines})
    series: list[Series] = []
    for k, alpha in enumerate(alphas):
        style = rank_style(k, len(alphas))
        series.append(with_intervals(f"alpha {alpha:g}", lines[0, alpha], style, exponential=True))
        expected = {width: math.sqrt(3) * width / alpha for width in widths}
        dashed = Style(light=style.light, dark=style.dark, dash="dash")
        series.append(guide(f"sqrt(3) d / {alpha:g}", expected, dashed))
    return Chart(
        key=f"{asked.key}-width",
        title="LoRA/FullFT ratio of LR* against width, longest runs",
        x_title="width d of the base (log scale)",
        y_title="LR* of LoRA over FullFT's (log scale)",
        x_log=True,
        y_log=True,
        series=dodged(series),
        caption="Geometric mean over seeds with the 95 % t interval. Dashed: sqrt(3) d / alpha, the ratio at which "
        "both gain equally by Adam's first step; a ratio that follows it is one of short runs.",
        ticks=value_axis(widths),
        levels=(band,),
    )


def _ratios(asked: Asked) -> tuple[dict[Arm, Floats], tuple[str, ...]]:
    """Log ratio of each LoRA arm to full fine-tuning beside it, per seed; and why the others have none."""
    found: dict[Arm, Floats] = {}
    refused: list[str] = []
    surfaces = asked.surfaces
    beside = {(arm.width, arm.batch_size, arm.steps): one for arm, one in surfaces.items() if arm.method == "full"}
    for arm, surface in surfaces.items():
        full = beside.get((arm.width, arm.batch_size, arm.steps))
        if arm.rank is None or arm.variant or full is None:
            continue
        try:
            lora, reference = aligned({arm: surface, full.arm: full}, 2).values()
            found[arm] = log_ratios(lora, reference)
        except Refused as why:
            refused.append(f"{why.reason} (d {arm.width}, {arm.steps} steps)")
    return found, tuple(dict.fromkeys(refused))


def _against(
    found: dict[Arm, Floats], line: Callable[[Arm], Line], place: Callable[[Arm], int]
) -> dict[Line, dict[float, Floats]]:
    """Values by line and place, averaged within a seed over arms of one line and place."""
    groups: dict[Line, dict[float, list[Floats]]] = defaultdict(lambda: defaultdict(list))
    for arm, logs in found.items():
        groups[line(arm)][float(place(arm))].append(logs)
    return {name: {x: _mean(values) for x, values in sorted(points.items())} for name, points in sorted(groups.items())}


def _mean(values: list[Floats]) -> Floats:
    """Over arms, on as many seeds as the shortest has."""
    fewest = min(len(one) for one in values)
    return np.mean([one[:fewest] for one in values], axis=0)


def _line(line: Line, points: dict[float, Floats], style: Style) -> Series:
    width, alpha = line
    return with_intervals(f"d {width}, alpha {alpha:g}", points, style, exponential=True)


def _line_styles(found: dict[Arm, Floats]) -> dict[Line, Style]:
    """Colour by width, dash by alpha."""
    widths, alphas = sorted({arm.width for arm in found}), sorted({arm.alpha for arm in found})
    return {
        (width, alpha): rank_style(k, len(widths), place)
        for k, width in enumerate(widths)
        for place, alpha in enumerate(alphas)
    }


def _level(logs: Floats, ranks: list[float]) -> Series:
    return with_intervals(
        "full", dict.fromkeys((min(ranks), max(ranks)), logs), full_style(), exponential=True, kind="line"
    )


def _left_out(refused: list[str] | tuple[str, ...]) -> str:
    return f" Left out: {'; '.join(dict.fromkeys(refused))}." if refused else ""
