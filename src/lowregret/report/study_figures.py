"""The figures of a study as PNG and SVG, drawn from the same charts as the page."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lowregret.report.figures import FIGURE_STYLE, LINESTYLES, legend_below, save_figure
from lowregret.report.protocols.chart import GUIDE, Chart, Level, Mark, Series


def write_study_figures(charts: tuple[Chart, ...], folder: Path) -> tuple[Path, ...]:
    """Draw every chart into the folder, and return the files; pictures of an earlier report go."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for chart in charts:
        written.extend(save_figure(draw_chart(chart), folder / chart.key))
    for file in {*folder.glob("*.png"), *folder.glob("*.svg")} - set(written):
        file.unlink()
    return tuple(written)


def draw_chart(chart: Chart) -> Figure:
    """One chart on a light page."""
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(6.6, 4.3), layout="constrained")
        axes = figure.subplots()
        for series in chart.series:
            _draw_series(axes, series)
        for mark in chart.marks:
            _draw_mark(axes, mark)
        _set_axes(axes, chart)
        for level in chart.levels:
            _draw_level(axes, level)
        axes.set_xlabel(chart.x_title)
        axes.set_ylabel(chart.y_title)
        axes.set_title(chart.title, loc="left", fontsize=10.5)
        legend_below(figure, axes)
    return figure


def _draw_series(axes: Axes, series: Series) -> None:
    colour, dash = series.style.light, LINESTYLES[series.style.dash]
    if series.kind == "guide":
        axes.plot(series.x, series.y, color=colour, linestyle=dash, linewidth=1.2, label=series.name)
        return
    axes.plot(series.x, series.y, color=colour, linestyle=dash, marker="o", markersize=3.5, label=series.name)
    if series.low == series.high:
        return
    if series.kind == "line":
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.14, linewidth=0)
        return
    below = [y - low for y, low in zip(series.y, series.low, strict=True)]
    above = [high - y for y, high in zip(series.y, series.high, strict=True)]
    axes.errorbar(series.x, series.y, yerr=(below, above), fmt="none", ecolor=colour, elinewidth=1.2, capsize=3)


def _draw_mark(axes: Axes, mark: Mark) -> None:
    axes.errorbar(
        [mark.x],
        [mark.y],
        xerr=([mark.x - mark.low], [mark.high - mark.x]),
        fmt="D",
        color=mark.style.light,
        markersize=4,
        elinewidth=1.2,
        capsize=2.5,
    )


def _set_axes(axes: Axes, chart: Chart) -> None:
    if chart.x_log:
        axes.set_xscale("log")
    if chart.y_log:
        axes.set_yscale("log")
    for axis, ticks in ((axes.xaxis, chart.x_ticks), (axes.yaxis, chart.y_ticks)):
        if ticks:
            axis.set_ticks([place for place, _ in ticks], [text for _, text in ticks])
            axis.set_minor_locator(NullLocator())


def _draw_level(axes: Axes, level: Level) -> None:
    """A line or band across the axes."""
    across = level.axis == "y"
    if level.low == level.high:
        line = axes.axhline if across else axes.axvline
        line(level.low, color=GUIDE.light, linestyle=":", linewidth=1.3, zorder=1, label=level.text)
    else:
        band = axes.axhspan if across else axes.axvspan
        band(level.low, level.high, color=GUIDE.light, alpha=0.13, linewidth=0, label=level.text)
