"""Figures of reinforcement learning: final accuracy against learning rate with its plateau, learning curves, layers.

Records hold error rates, 1 - pass rate; the figures show accuracies.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np

from lowregret.report.numbers import count
from lowregret.report.protocols.asked import Asked
from lowregret.report.protocols.chart import Chart, Level, Mark, Series, by_seeds
from lowregret.report.protocols.curves import ROW
from lowregret.specs import Arm
from lowregret.studies.accuracy import plateau, tuned_accuracy
from lowregret.studies.best_rate import best_point
from lowregret.studies.claims.arms import primary_full
from lowregret.studies.claims.c9b_steps import THRESHOLD, threshold
from lowregret.studies.surface import Refused, Surface

SEEDS = "mean over seeds, band from the smallest to the largest seed"


def accuracy_against_rate(asked: Asked) -> tuple[Chart, ...]:
    """Final accuracy of every arm at every rate, with the decades that are nearly as good as the best (C10)."""
    series = {
        arm: by_seeds(asked.names[arm], _finals(surface), asked.styles[arm])
        for arm in asked.shown
        if (surface := asked.surfaces[arm]).num_rates
    }
    if not any(len(one.x) > 1 for one in series.values()):
        return ()
    marks, refused = _plateaus(asked, tuple(series))
    left_out = f" No plateau: {'; '.join(refused)}." if refused else ""
    chart = Chart(
        key=f"{asked.key}-rates",
        title="Final accuracy against learning rate",
        x_title="learning rate (log scale)",
        y_title="held-out accuracy at the end",
        x_log=True,
        series=tuple(series.values()),
        caption=f"Test prompts; {SEEDS}. A cell that diverged has accuracy 0. Bars below the curves: the "
        f"plateau, rates within {asked.margins.plateau_drop:g} of a seed's peak, ends averaged over seeds; their "
        f"heights mean nothing.{left_out}",
        marks=marks,
        heights=tuple((k / 5, f"{k / 5:g}") for k in range(6)),
    )
    return (chart,)


def _finals(surface: Surface) -> dict[float, list[float]]:
    """Accuracies of the seeds by rate."""
    accuracy = 1 - np.where(np.isfinite(surface.test), surface.test, 1.0)
    return {rate: accuracy[:, column].tolist() for column, rate in enumerate(surface.rates)}


def _plateaus(asked: Asked, arms: tuple[Arm, ...]) -> tuple[tuple[Mark, ...], tuple[str, ...]]:
    """A bar for every arm whose plateau lies inside its grid, in rows below accuracy 0; and why not the others."""
    marks: list[Mark] = []
    refused: list[str] = []
    for arm in arms:
        try:
            found = plateau(asked.surfaces[arm], drop=asked.margins.plateau_drop)
        except Refused as why:
            refused.append(why.reason)
            continue
        low, high = found.ends
        note = f"plateau {float(found.decades.mean()):.2f} decades, {low:.3g} to {high:.3g}"
        row = -ROW * (len(marks) + 1)
        name, style = asked.names[arm], asked.styles[arm]
        marks.append(Mark(name=name, x=math.sqrt(low * high), low=low, high=high, y=row, style=style, note=note))
    return tuple(marks), tuple(dict.fromkeys(refused))


def accuracy_curves(asked: Asked) -> tuple[Chart, ...]:
    """Accuracy over steps, every arm at the rate that validation chose, with the threshold of C9b."""
    series: list[Series] = []
    edges: list[str] = []
    for arm in asked.shown:
        surface = asked.surfaces[arm]
        column, why = _best(surface)
        if why:
            edges.append(why)
        if column is None:
            continue
        points: dict[float, list[float]] = defaultdict(list)
        for cell in surface.outcomes[column :: surface.num_rates]:
            for step, error in zip(cell.steps, cell.test, strict=True):
                if math.isfinite(error):
                    points[float(step)].append(1 - error)
        if points:
            name = f"{asked.names[arm]} at {surface.rates[column]:.2g}"
            series.append(by_seeds(name, dict(sorted(points.items())), asked.styles[arm]))
    if not series:
        return ()
    line = _threshold_line(asked)
    told = f" Dotted: {THRESHOLD:.0%} of full fine-tuning's gain, the threshold of C9b." if line else ""
    note = f" Drawn all the same: {'; '.join(dict.fromkeys(edges))}." if edges else ""
    chart = Chart(
        key=f"{asked.key}-curves",
        title="Learning curves at the best rates",
        x_title="optimizer steps",
        y_title="held-out accuracy",
        x_log=False,
        series=tuple(series),
        caption=f"Test prompts; each arm at the rate with the best mean validation accuracy at the end; "
        f"{SEEDS}.{told}{note}",
        levels=line,
    )
    return (chart,)


def _best(surface: Surface) -> tuple[int | None, str]:
    """Place of the best rate, and a warning where it lies on the grid's edge; None where every cell diverged."""
    try:
        return best_point(surface), ""
    except Refused as why:
        errors = surface.validation.mean(axis=0)
        return (int(np.argmin(errors)) if np.isfinite(errors).any() else None), why.reason


def _threshold_line(asked: Asked) -> tuple[Level, ...]:
    full = [surface for arm, surface in asked.surfaces.items() if primary_full(arm)]
    if asked.question.protocol != "rl" or len(full) != 1:
        return ()
    try:
        height = threshold(tuned_accuracy(full[0]))
    except Refused:
        return ()
    return (Level(axis="y", low=height, high=height, text="threshold"),)


def accuracy_of_layers(asked: Asked) -> tuple[Chart, ...]:
    """Tuned final accuracy of each set of layers, side by side: their parameters are equal (paper, figure 5)."""
    series: list[Series] = []
    places: list[tuple[float, str]] = []
    refused: list[str] = []
    for arm in asked.shown:
        try:
            final = tuned_accuracy(asked.surfaces[arm]).final.tolist()
        except Refused as why:
            refused.append(why.reason)
            continue
        place = float(len(places))
        places.append((place, f"{count(arm.params)}"))
        series.append(by_seeds(asked.names[arm], {place: final}, asked.styles[arm], kind="bars"))
    if not series:
        return ()
    left_out = f" Left out: {'; '.join(dict.fromkeys(refused))}." if refused else ""
    chart = Chart(
        key=f"{asked.key}-layers",
        title="Final accuracy by the layers that carry adapters",
        x_title="trained parameters",
        y_title="held-out accuracy at the end",
        x_log=False,
        series=tuple(series),
        caption="Test prompts; each arm at the rate with the best mean validation accuracy at the end; mean over "
        f"seeds, bars from the smallest to the largest seed.{left_out}",
        ticks=tuple(places),
    )
    return (chart,)
