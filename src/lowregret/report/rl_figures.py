"""The figures of a run of RL as PNG and SVG, under the guarantees of `figures`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from lowregret.report.curves import slot_styles
from lowregret.report.figures import (
    FIGURE_STYLE,
    GREY,
    LINESTYLES,
    draw_curves,
    finish_steps,
    label_ends,
    legend_below,
    save_figure,
)
from lowregret.report.rl_curves import Series, accuracy_curves, base_accuracy, bit_curves, step_series
from lowregret.report.rl_findings import AccuracyFinding, accuracy_findings
from lowregret.specs import ResolvedPlan
from lowregret.store import RunDirectory
from lowregret.store.rows import AccuracyRow, PolicyRow

COLUMNS = 2
"""Panels of the steps' figure side by side."""


def write_rl_figures(run: RunDirectory) -> tuple[Path, ...]:
    """Draw every figure that the run has data for into its `figures/`, and return the files."""
    plan, policy = run.plan, run.read_policy()
    figures = {
        "accuracy": draw_accuracy(run.read_accuracy(), plan),
        "steps": draw_steps(policy, run.read_accuracy(), plan),
        "bits": draw_bits(policy, plan, accuracy_findings(run)),
    }
    run.figures.mkdir(exist_ok=True)
    written: list[Path] = []
    for name, figure in figures.items():
        if figure is not None:
            written.extend(save_figure(figure, run.figures / name))
    return tuple(written)


def draw_accuracy(rows: Sequence[AccuracyRow], plan: ResolvedPlan) -> Figure | None:
    """Validation and test accuracy of every slot against steps, side by side on one scale."""
    curves = accuracy_curves(rows, plan)
    if not curves:
        return None
    styles = slot_styles(plan)
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(1.2 + 4.1 * len(curves), 4.1), layout="constrained")
        panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for axes, (split, lines) in zip(panels, curves.items(), strict=True):
            base = base_accuracy(rows, plan, split)
            if base is not None:
                axes.axhline(base, color=GREY, linestyle=(0, (5, 4)), linewidth=1.2, label="base model", zorder=1)
            draw_curves(axes, lines, styles)
            axes.set_title(split, loc="left", fontsize=10.5, fontweight="bold")
            finish_steps(axes)
        label_ends(panels[-1], list(curves.values())[-1], styles)
        assert plan.spec.rl is not None
        panels[0].set_ylabel(f"held-out accuracy of {plan.spec.rl.judge_by} answers")
        legend_below(figure, panels[0])
    return figure


def draw_steps(policy: Sequence[PolicyRow], accuracy: Sequence[AccuracyRow], plan: ResolvedPlan) -> Figure | None:
    """What the steps logged, a panel a measure, smoothed over what each step says."""
    series = step_series(policy, accuracy, plan)
    if not series:
        return None
    rows = math.ceil(len(series) / COLUMNS)
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(9.4, 2.6 * rows), layout="constrained")
        panels: list[Axes] = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
        for axes, one in zip(panels, series, strict=False):
            _draw_series(axes, one, plan)
        for axes in panels[len(series) :]:
            axes.set_axis_off()
        legend_below(figure, panels[0])
    return figure


def draw_bits(policy: Sequence[PolicyRow], plan: ResolvedPlan, findings: Sequence[AccuracyFinding]) -> Figure | None:
    """Bits in the rewards so far, an upper bound, and what each adapter holds."""
    curves = [curve for curve in bit_curves(policy, plan) if curve.values[-1] > 0]
    if not curves:
        return None
    styles = slot_styles(plan)
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(6.2, 3.9), layout="constrained")
        axes = figure.subplots()
        draw_curves(axes, curves, styles)
        for found in findings:
            if found.capacity is not None:
                style = {"color": styles[found.slot].light, "linestyle": (0, (1, 2)), "linewidth": 1.4}
                axes.axhline(found.capacity, label=f"{found.slot} holds", **style)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        finish_steps(axes)
        axes.set_ylabel("bits in the rewards so far, at most")
        legend_below(figure, axes)
    return figure


def _draw_series(axes: Axes, series: Series, plan: ResolvedPlan) -> None:
    styles = slot_styles(plan)
    for raw, smoothed in zip(series.raw, series.smoothed, strict=True):
        style = styles[raw.slot]
        axes.plot(raw.steps, raw.values, color=style.light, linewidth=0.8, alpha=0.25)
        axes.plot(smoothed.steps, smoothed.values, color=style.light, linestyle=LINESTYLES[style.dash], label=raw.slot)
    axes.set_title(series.measure.title, loc="left", fontsize=10, fontweight="bold")
    axes.set_ylabel(series.measure.label)
    axes.set_xlabel("step")
