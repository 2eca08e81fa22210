"""Learning curves and U-curves: the figures that every question has which sweeps learning rates."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from lowregret.report.curves import log_step
from lowregret.report.protocols.asked import Asked, by_arm, by_seed
from lowregret.report.protocols.chart import Chart, Mark, Series, by_seeds, interval, seeds_text, step_axis
from lowregret.specs import Arm
from lowregret.studies.best_rate import log_best_rates
from lowregret.studies.outcome import Outcome
from lowregret.studies.surface import Refused, Surface

ROW = 0.045
"""Height between two marks below the curves, as a share of the curves' own."""


def learning_curves(asked: Asked) -> tuple[Chart, ...]:
    """Test loss against log steps, at each step the smallest over the learning rates (paper, figure 1)."""
    series: list[Series] = []
    for arm, own in _drawn(asked).items():
        best: dict[int, list[float]] = defaultdict(list)
        for cells in by_seed(own).values():
            for step, loss in pointwise_minimum(cells).items():
                best[step].append(loss)
        if best:
            points = {log_step(step): best[step] for step in sorted(best)}
            series.append(by_seeds(asked.names[arm], points, asked.styles[arm]))
    if not series:
        return ()
    swept = any(surface.num_rates > 1 for surface in asked.surfaces.values())
    least = "At each step the smallest loss over the learning rates; mean" if swept else "Mean"
    chart = Chart(
        key=f"{asked.key}-curves",
        title="Learning curves",
        x_title="optimizer steps (log scale)",
        y_title="test NLL (nats per token)",
        x_log=True,
        series=tuple(series),
        caption=f"{least} over seeds, band from the smallest to the largest seed.{asked.hidden}",
        ticks=step_axis(max(outcome.steps[-1] for outcome in asked.outcomes if outcome.steps)),
    )
    return (chart,)


def u_curves(asked: Asked) -> tuple[Chart, ...]:
    """Final test loss against the learning rate, with LR* (paper, figure 2); none where nothing was swept."""
    series: dict[Arm, Series] = {}
    for arm, own in _drawn(asked).items():
        by_rate: dict[float, list[float]] = defaultdict(list)
        for outcome in own:
            if math.isfinite(outcome.final_test):
                by_rate[outcome.lr].append(outcome.final_test)
        if by_rate:
            points = {lr: by_rate[lr] for lr in sorted(by_rate)}
            series[arm] = by_seeds(asked.names[arm], points, asked.styles[arm])
    if not any(len(one.x) > 1 for one in series.values()):
        return ()
    marks, refused = best_rate_marks(asked, series)
    caption = (
        "Mean over seeds, band from the smallest to the largest seed. Cells that diverged or were stopped early are "
        "left out. Diamonds below the curves: LR*, the vertex of a quadratic in log LR fitted to each seed's "
        f"validation loss, with the 95 % interval over seeds; their heights mean nothing.{asked.hidden}"
    )
    if refused:
        caption += f" No LR*: {'; '.join(refused)}."
    chart = Chart(
        key=f"{asked.key}-rates",
        title="Final loss against learning rate",
        x_title="learning rate (log scale)",
        y_title="final test NLL (nats per token)",
        x_log=True,
        series=tuple(series.values()),
        caption=caption,
        marks=marks,
    )
    return (chart,)


def best_rate_marks(asked: Asked, series: Mapping[Arm, Series]) -> tuple[tuple[Mark, ...], tuple[str, ...]]:
    """LR* of every arm that has one, in rows below the curves; and why the others have none."""
    found: list[tuple[Arm, Surface, tuple[float, float, float]]] = []
    refused: list[str] = []
    for arm in series:
        surface = asked.surfaces[arm]
        try:
            found.append((arm, surface, interval(log_best_rates(surface), exponential=True)))
        except Refused as why:
            refused.append(why.reason)
    lowest = min(min(one.low) for one in series.values())
    height = max(max(one.high) for one in series.values()) - lowest or 1.0
    marks = tuple(
        Mark(
            name=asked.names[arm],
            x=best,
            low=low,
            high=high,
            y=lowest - ROW * height * (row + 1),
            style=asked.styles[arm],
            note=f"LR* {best:.3g}, {low:.3g} to {high:.3g}, {seeds_text(len(surface.seeds))}",
        )
        for row, (arm, surface, (low, best, high)) in enumerate(found)
    )
    return marks, tuple(dict.fromkeys(refused))


def pointwise_minimum(outcomes: Sequence[Outcome]) -> dict[int, float]:
    """At each step the smallest test loss over the learning rates of one arm and seed."""
    best: dict[int, float] = {}
    for outcome in outcomes:
        for step, loss in zip(outcome.steps, outcome.test, strict=True):
            if math.isfinite(loss):
                best[step] = min(loss, best.get(step, math.inf))
    return best


def _drawn(asked: Asked) -> dict[Arm, list[Outcome]]:
    groups = by_arm(asked.outcomes)
    return {arm: groups[arm] for arm in asked.shown}
