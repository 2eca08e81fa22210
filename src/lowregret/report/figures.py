"""The figures of a run as PNG and SVG, for papers and READMEs.

Guarantees: drawn from the run directory only; the same rows give the same picture; no figure is drawn without data.
The interactive version is in `report.html`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from lowregret.report.curves import (
    Curve,
    RateCurve,
    Style,
    base_nll,
    held_out_curves,
    log_step,
    rate_curves,
    slot_styles,
    spread,
    step_ticks,
    training_curves,
)
from lowregret.report.findings import SlotFinding, slot_findings
from lowregret.specs import ResolvedPlan
from lowregret.store import EvalRow, MetricRow, RunDirectory

NLL_LABEL = "held-out NLL (nats per token)"
STEP_LABEL = "optimizer steps (log scale)"

_MOST_LABELS = 8
"""Lines that are labelled at their ends; more would overlap, and the legend serves."""

FIGURE_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    # Names of data sets and slots are text, whatever dollars they hold.
    "text.parse_math": False,
    "svg.hashsalt": "lowregret",
    "svg.fonttype": "none",
}
GREY = "#6b6b6b"
LINESTYLES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def write_figures(run: RunDirectory) -> tuple[Path, ...]:
    """Draw every figure that the run has data for into its `figures/`, and return the files."""
    plan, evals, metrics = run.plan, run.read_evals(), run.read_metrics()
    figures = {
        "learning_curves": draw_learning_curves(evals, plan),
        "further_data": draw_further_data(evals, plan),
        "training_loss": draw_training_loss(metrics, plan),
        "learning_rates": draw_learning_rates(slot_findings(run), plan),
    }
    run.figures.mkdir(exist_ok=True)
    written: list[Path] = []
    for name, figure in figures.items():
        if figure is not None:
            written.extend(save_figure(figure, run.figures / name))
    return tuple(written)


def draw_learning_curves(evals: Sequence[EvalRow], plan: ResolvedPlan) -> Figure | None:
    """Validation and test NLL of every slot against steps."""
    curves = {split: c for split, c in held_out_curves(evals, plan).items() if split in ("validation", "test")}
    return _draw_panels(curves, evals, plan)


def draw_further_data(evals: Sequence[EvalRow], plan: ResolvedPlan) -> Figure | None:
    """NLL on the further data sets of the run: what is forgotten."""
    curves = {split: c for split, c in held_out_curves(evals, plan).items() if split not in ("validation", "test")}
    return _draw_panels(curves, evals, plan)


def draw_training_loss(metrics: Sequence[MetricRow], plan: ResolvedPlan) -> Figure | None:
    """Training loss of every slot, smoothed."""
    curves = training_curves(metrics, plan)
    if not curves:
        return None
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(6.2, 3.9), layout="constrained")
        axes = figure.subplots()
        draw_curves(axes, curves, slot_styles(plan))
        finish_steps(axes)
        label_ends(axes, curves, slot_styles(plan))
        axes.set_ylabel("training loss (nats per token), smoothed")
        legend_below(figure, axes)
    return figure


def draw_learning_rates(findings: Sequence[SlotFinding], plan: ResolvedPlan) -> Figure | None:
    """Final test NLL against learning rate, a line a rank; where some rank has several learning rates."""
    curves = rate_curves(findings)
    if not curves:
        return None
    styles = slot_styles(plan)
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(6.2, 3.9), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        for curve in curves:
            _draw_rates(axes, curve, styles[curve.slots[0]].light)
        _mark_missing(axes, curves, styles)
        rates = sorted({rate for curve in curves for rate in curve.rates})
        axes.xaxis.set_major_locator(FixedLocator(rates))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(rates, [f"{rate:.2g}" for rate in rates], rotation=35 if len(rates) > 6 else 0)
        axes.set_xlabel("learning rate (log scale)")
        axes.set_ylabel("final test NLL (nats per token)")
        axes.legend(frameon=False)
    return figure


def _draw_rates(axes: Axes, curve: RateCurve, color: str) -> None:
    points = [(r, v) for r, v in zip(curve.rates, curve.values, strict=True) if v is not None]
    axes.plot([r for r, _ in points], [v for _, v in points], marker="o", markersize=5, color=color, label=curve.label)


def _mark_missing(axes: Axes, curves: Sequence[RateCurve], styles: dict[str, Style]) -> None:
    """Above the axes, at its learning rate, the name of every rank that has no final loss there, and why."""
    above: dict[float, int] = {}
    for curve in curves:
        for rate, how in curve.missing:
            height = 1.03 + 0.05 * above.get(rate, 0)
            above[rate] = above.get(rate, 0) + 1
            axes.text(
                rate,
                height,
                f"\u00d7 {curve.label} {how}",
                transform=axes.get_xaxis_transform(),
                fontsize=8,
                color=styles[curve.slots[0]].light,
                ha="center",
            )


def _draw_panels(curves: dict[str, tuple[Curve, ...]], evals: Sequence[EvalRow], plan: ResolvedPlan) -> Figure | None:
    """One panel a split, side by side on one scale of NLL unless the splits are different data."""
    if not curves:
        return None
    styles = slot_styles(plan)
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(1.2 + 4.1 * len(curves), 4.1), layout="constrained")
        same = set(curves) <= {"validation", "test"}
        panels = figure.subplots(1, len(curves), sharey=same, squeeze=False)[0]
        for axes, (split, lines) in zip(panels, curves.items(), strict=True):
            base = base_nll(evals, split)
            if base is not None:
                axes.axhline(base, color=GREY, linestyle=(0, (5, 4)), linewidth=1.2, label="base model", zorder=1)
            draw_curves(axes, lines, styles)
            axes.set_title(split, loc="left", fontsize=10.5, fontweight="bold")
            finish_steps(axes)
        for axes, lines in zip(panels, curves.values(), strict=True):
            # After all lines are drawn: panels that share an axis change each other's limits.
            if axes is panels[-1] or not same:
                label_ends(axes, lines, styles)
        panels[0].set_ylabel(NLL_LABEL)
        legend_below(figure, panels[0])
    return figure


def legend_below(figure: Figure, axes: Axes) -> None:
    """The names of all lines under the figure, which grows by as many rows as they take."""
    handles, labels = axes.get_legend_handles_labels()
    # A character is about 0.08 inch wide and the line before it takes the place of eight.
    columns = min(len(labels), int(figure.get_figwidth() / (0.08 * (8 + max(map(len, labels))))))
    figure.set_figheight(figure.get_figheight() + 0.2 * (math.ceil(len(labels) / columns) - 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3)


def draw_curves(axes: Axes, curves: Sequence[Curve], styles: dict[str, Style]) -> None:
    """A line a slot on a logarithmic axis of steps."""
    for curve in curves:
        style = styles[curve.slot]
        axes.plot(
            [log_step(step) for step in curve.steps],
            curve.values,
            color=style.light,
            linestyle=LINESTYLES[style.dash],
            marker="o" if curve.split != "train" and len(curve.steps) <= 30 else None,
            markersize=3.5,
            label=curve.slot,
        )
    last = max(curve.steps[-1] for curve in curves)
    for curve in curves:
        if curve.steps[-1] < last:  # A cross where a diverged slot was retired.
            axes.plot(log_step(curve.steps[-1]), curve.values[-1], "X", markersize=8, color=styles[curve.slot].light)
    axes.set_xscale("log")
    ticks = step_ticks(last) if any(curve.steps[0] == 0 for curve in curves) else step_ticks(last)[1:]
    axes.set_xticks([log_step(tick) for tick in ticks], [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))


def finish_steps(axes: Axes) -> None:
    """Name the axis of steps, and leave room at its ends."""
    axes.set_xlabel(STEP_LABEL)
    axes.margins(x=0.03)


def label_ends(axes: Axes, curves: Sequence[Curve], styles: dict[str, Style]) -> None:
    """Write each slot's name beside the end of its line; a slot that ended early is named in the legend only."""
    last = max(curve.steps[-1] for curve in curves)
    ends = sorted((c.values[-1], c.slot) for c in curves if c.steps[-1] == last)
    if len(ends) > _MOST_LABELS:
        return
    low, high = axes.get_ylim()
    places = spread([(value - low) / (high - low) for value, _ in ends], gap=0.056)
    for (value, slot), place in zip(ends, places, strict=True):
        axes.annotate(
            slot,
            xy=(log_step(last), value),
            xytext=(1.03, place),
            textcoords=axes.transAxes,
            color=styles[slot].light,
            fontsize=8.5,
            fontweight="bold",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": styles[slot].light, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
        )


def save_figure(figure: Figure, stem: Path) -> tuple[Path, Path]:
    FigureCanvasAgg(figure)
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    with matplotlib.rc_context(FIGURE_STYLE):
        figure.savefig(png, dpi=200)
        figure.savefig(svg, metadata={"Date": None})
    return png, svg
