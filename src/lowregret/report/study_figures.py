"""The figures of a study as PNG and SVG, drawn from the same charts as the page."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from lowregret.report.figures import FIGURE_STYLE, LINESTYLES, save_figure
from lowregret.report.study_charts import Chart


def write_study_figures(charts: tuple[Chart, ...], folder: Path) -> tuple[Path, ...]:
    """Draw every chart into the folder, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for chart in charts:
        written.extend(save_figure(draw_chart(chart), folder / chart.key))
    return tuple(written)


def draw_chart(chart: Chart) -> Figure:
    """One chart on a light page."""
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(6.6, 4.3), layout="constrained")
        axes = figure.subplots()
        for series in chart.series:
            colour, dash = series.style.light, LINESTYLES[series.style.dash]
            axes.plot(series.x, series.y, color=colour, linestyle=dash, marker="o", markersize=3.5, label=series.name)
            if series.low != series.high:
                axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.14, linewidth=0)
        if chart.x_log:
            axes.set_xscale("log")
        if chart.ticks:
            axes.xaxis.set_major_locator(FixedLocator([place for place, _ in chart.ticks]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticklabels([text for _, text in chart.ticks])
        else:
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(chart.x_title)
        axes.set_ylabel(chart.y_title)
        axes.set_title(chart.title, loc="left", fontsize=10.5)
        figure.legend(loc="outside lower center", ncols=min(5, max(1, len(chart.series))), frameon=False, fontsize=8)
    return figure
