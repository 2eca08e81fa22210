"""What a figure shows, as plain values: one description that the page and the printed figures both draw. No drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from lowregret.report.curves import Style, log_step
from lowregret.report.numbers import count, learning_rate
from lowregret.studies.students_t import Floats, t_interval

GUIDE = Style(light="#6b6b6b", dark="#a1a9b2", dash="dash")
"""Of lines that no cell was measured for."""
Ticks = tuple[tuple[float, str], ...]
"""Places and texts of an axis."""
LEVEL = 0.05
"""Intervals of the figures cover 95 %, whatever level a verdict's rule needs."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart.

    >>> Series(name="r8", x=(1.0, 2.0), y=(2.0, 1.5), low=(1.9, 1.4), high=(2.1, 1.6), style=GUIDE).y[-1]
    1.5
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    """Lower end by point: the smallest over the seeds, or of an interval; equal to `y` where there is one value."""
    high: tuple[float, ...]
    style: Style
    note: tuple[str, ...] = ()
    """What the reader sees on hovering, by point."""
    kind: Literal["line", "bars", "guide"] = "line"
    """How `low` and `high` are drawn: as a band, or as bars; a guide is a thin line without points."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A value on the x axis with its interval, such as the LR* of an arm.

    >>> Mark(name="r8", x=1e-3, low=8e-4, high=1.2e-3, y=1.9, style=GUIDE).x
    0.001
    """

    name: str
    """Of the series that it belongs to."""
    x: float
    low: float
    high: float
    y: float
    """Height at which it is drawn; it has no meaning."""
    style: Style
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Level:
    """A value of one axis that the reader compares with: a line where both ends are equal, else a band.

    >>> Level(axis="y", low=-0.05, high=0.05, text="margin").axis
    'y'
    """

    axis: Literal["x", "y"]
    low: float
    high: float
    text: str
    """For the legend."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure.

    >>> Chart(key="rank-u", title="t", x_title="x", y_title="y", x_log=True, series=(), caption="c").x_log
    True
    """

    key: str
    """File name of the printed figure."""
    title: str
    x_title: str
    y_title: str
    x_log: bool
    series: tuple[Series, ...]
    caption: str
    """What is drawn and how to read it."""
    y_log: bool = False
    ticks: Ticks = ()
    """Of the x axis where the values that occur should stand at it."""
    heights: Ticks = ()
    """Of the y axis where part of it means nothing, such as the rows of marks."""
    marks: tuple[Mark, ...] = ()
    levels: tuple[Level, ...] = ()

    @property
    def x_ticks(self) -> Ticks:
        """Places and texts of the x axis; empty: as the drawing library chooses, on a linear axis."""
        if self.ticks or not self.x_log:
            return self.ticks
        values = [x for one in self.series for x in one.x] + [end for one in self.marks for end in (one.low, one.high)]
        return log_ticks(min(values), max(values))

    @property
    def y_ticks(self) -> Ticks:
        """Places and texts of the y axis; empty: as the drawing library chooses, on a linear axis."""
        if self.heights or not self.y_log:
            return self.heights
        values = [y for one in self.series for ends in (one.low, one.y, one.high) for y in ends]
        values += [end for one in self.levels if one.axis == "y" for end in (one.low, one.high)]
        return log_ticks(min(values), max(values))


def by_seeds(
    name: str,
    points: Mapping[float, Sequence[float]],
    style: Style,
    *,
    kind: Literal["line", "bars"] = "line",
) -> Series:
    """A line through the means of the seeds, with the range from the smallest to the largest.

    Args:
        name: for the legend.
        points: values of the seeds by x.
        style: of the line.
        kind: of the series.
    """
    return Series(
        name=name,
        x=tuple(points),
        y=tuple(fmean(values) for values in points.values()),
        low=tuple(min(values) for values in points.values()),
        high=tuple(max(values) for values in points.values()),
        style=style,
        note=tuple(seeds_text(len(values)) for values in points.values()),
        kind=kind,
    )


def with_intervals(
    name: str,
    points: Mapping[float, Floats],
    style: Style,
    *,
    exponential: bool = False,
    kind: Literal["line", "bars"] = "bars",
) -> Series:
    """A line through means over seeds with their 95 % t intervals.

    Args:
        name: for the legend.
        points: values of the seeds by x.
        style: of the line.
        exponential: the values are logarithms; what is drawn is not.
        kind: of the series.
    """
    rows = [interval(values, exponential=exponential) for values in points.values()]
    return Series(
        name=name,
        x=tuple(points),
        y=tuple(row[1] for row in rows),
        low=tuple(row[0] for row in rows),
        high=tuple(row[2] for row in rows),
        style=style,
        note=tuple(
            f"{row[0]:.3g} to {row[2]:.3g}, {seeds_text(len(values))}"
            for row, values in zip(rows, points.values(), strict=True)
        ),
        kind=kind,
    )


def interval(values: Floats, *, exponential: bool = False) -> tuple[float, float, float]:
    """Low end, mean and high end of the 95 % t interval over seeds; all three the value itself where there is one.

    >>> import numpy as np
    >>> interval(np.array([1.0, 2.0, 3.0]))
    (-0.484..., 2.0, 4.484...)
    """
    mean = float(values.mean())
    low, high = t_interval(values, level=LEVEL) if len(values) > 1 else (mean, mean)
    return (math.exp(low), math.exp(mean), math.exp(high)) if exponential else (low, mean, high)


def guide(name: str, points: Mapping[float, float], style: Style = GUIDE) -> Series:
    """A line that theory draws."""
    x, y = tuple(points), tuple(points.values())
    return Series(name=name, x=x, y=y, low=y, high=y, style=style, note=("",) * len(x), kind="guide")


def dodged(series: Sequence[Series]) -> tuple[Series, ...]:
    """The same lines a little apart on their logarithmic x axis, so that bars at one place can be told apart."""
    number = sum(one.kind != "guide" for one in series)
    moved: list[Series] = []
    place = 0
    for one in series:
        if one.kind == "guide":
            moved.append(one)
            continue
        factor = (1 + DODGE) ** (place - (number - 1) / 2)
        moved.append(replace(one, x=tuple(x * factor for x in one.x)))
        place += 1
    return tuple(moved)


DODGE = 0.02
"""Between neighbouring lines, as a share of x."""


def log_ticks(low: float, high: float) -> Ticks:
    """Round values of a logarithmic axis: more of each decade where there are few decades.

    >>> log_ticks(2e-4, 2e-2)
    ((0.0003, '3e-4'), (0.001, '1e-3'), (0.003, '3e-3'), (0.01, '1e-2'))
    """
    decades = math.log10(high / low)
    digits = (1, 1.5, 2, 3, 5, 7) if decades < 0.7 else (1, 2, 5) if decades < 1.5 else (1, 3) if decades < 3 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    values = [float(f"{digit}e{exponent}") for exponent in range(first, last + 1) for digit in digits]
    return tuple((value, short(value)) for value in values if low / 1.05 <= value <= high * 1.05)


def short(value: float) -> str:
    """A value as an axis has room for.

    >>> short(3e-4), short(0.5), short(15_000)
    ('3e-4', '0.5', '15k')
    """
    if value >= 10_000:
        return count(round(value))
    return f"{value:g}" if value >= 0.1 else learning_rate(value)


def step_axis(last: int) -> Ticks:
    """Ticks of a logarithmic axis of steps: 0 and the powers of two, where the losses are measured.

    >>> step_axis(4)
    ((0.5, '0'), (1.0, '1'), (2.0, '2'), (4.0, '4'))
    """
    return tuple((log_step(step), str(step)) for step in (0, *(1 << k for k in range(last.bit_length()))))


def value_axis(values: Sequence[float]) -> Ticks:
    """A tick at every value that occurs, such as every rank."""
    return tuple((value, f"{value:g}") for value in sorted(set(values)))


def seeds_text(number: int) -> str:
    """How many seeds, in words.

    >>> seeds_text(1), seeds_text(3)
    ('1 seed', '3 seeds')
    """
    return f"{number} seed{'' if number == 1 else 's'}"
