"""What is estimated from cells that were trained by reinforcement, whose series are held-out error rates in 0..1.

An error rate is 1 - pass rate; no parabola follows it, because a policy that collapses leaps from one grid point to the
next. Hence the measured point is taken, and what the grid of rates or of evaluations leaves open is said as an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lowregret.specs.rl import COLLAPSED
from lowregret.studies.best_rate import best_point
from lowregret.studies.outcome import Outcome
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, Surface

NEAR = 0.02
"""Accuracy under the best rate's at which its neighbour is as good: that of C10's plateau."""
EVEN = 0.05
"""Relative difference of spacings on a logarithmic grid that rounded rates may have."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuned:
    """An arm at the rate that validation chose: one for all seeds, by their mean error at the end.

    >>> sorted(Tuned.__dataclass_fields__)
    ['best', 'column', 'final', 'grid_error', 'start', 'surface']
    """

    surface: Surface
    column: int
    """Place of the rate."""
    start: Floats
    """Test accuracy before training, per seed."""
    final: Floats
    """Test accuracy after the last step."""
    best: Floats
    """Test accuracy at the step that validation would have stopped at."""
    grid_error: float
    """Standard error of the peak's height that the grid leaves, which all seeds share."""

    @property
    def rate(self) -> float:
        return self.surface.rates[self.column]

    @property
    def cells(self) -> tuple[Outcome, ...]:
        """Of each seed that at the rate."""
        return self.surface.outcomes[self.column :: self.surface.num_rates]


def tuned_accuracy(surface: Surface) -> Tuned:
    """The arm at its best rate.

    The grid may miss the peak where it is narrower than the grid's spacing, by at most a share of the fall to the next
    lower rate. Accuracy that falls with the square of the distance below its peak and collapses above it: a third.
    Where the next higher rate is as good (`NEAR`), so that the peak lies between the two: an eighth, as of a parabola.
    `grid_error` is half of that.

    Raises:
        Refused: the rate lies on the grid's edge, or nothing was measured before training.
    """
    column = best_point(surface)
    cells = surface.outcomes[column :: surface.num_rates]
    if any(cell.steps[0] != 0 for cell in cells):
        raise Refused(f"{surface.arm.label} was not evaluated before its first step", "evaluate at step 0")
    mean = _final(surface.validation).mean(axis=0)
    stops = [int(np.argmin(np.nan_to_num(cell.validation, nan=np.inf))) for cell in cells]
    return Tuned(
        surface=surface,
        column=column,
        start=1 - np.array([cell.test[0] for cell in cells]),
        final=1 - surface.test[:, column],
        best=1 - np.array([cell.test[stop] for cell, stop in zip(cells, stops, strict=True)]),
        grid_error=_missed(mean, column) / 2,
    )


def _missed(mean: Floats, column: int) -> float:
    """Most by which the peak may lie above the best rate's accuracy; the best is not the lowest rate."""
    fall = max(0.0, float(mean[column] - mean[column - 1]))
    flat = column + 1 < len(mean) and mean[column] - mean[column + 1] <= NEAR
    return fall / 8 if flat else fall / 3


def error_differences(one: Surface, other: Surface) -> tuple[Floats, float]:
    """Final test error of one arm minus the other's, each at its best rate, paired by seed; and what the grids leave.

    Raises:
        Refused: see `tuned_accuracy`.
    """
    a, b = tuned_accuracy(one), tuned_accuracy(other)
    return b.final - a.final, math.hypot(a.grid_error, b.grid_error)


def collapsed(outcome: Outcome) -> bool:
    """Whether a cell lost what it had learned, or its weights.

    >>> from lowregret.specs import Arm
    >>> cell = Outcome(cell="a1", arm=Arm(method="full", params=1, batch_size=8, steps=9), lr=0.1, seed=0,
    ...     steps=(0, 5, 9), validation=(0.6, 0.2, 0.97), test=(0.6, 0.2, 0.97))
    >>> collapsed(cell)
    True
    """
    if outcome.diverged:
        return True
    accuracy = 1 - np.nan_to_num(outcome.test, nan=1.0)
    return bool(accuracy[-1] < COLLAPSED * accuracy.max())


def num_collapsed(outcomes: Iterable[Outcome]) -> int:
    """How many cells collapsed."""
    return sum(map(collapsed, outcomes))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reached:
    """When an arm first had the accuracy asked for.

    >>> Reached(steps=np.array([40.0, np.inf]), last=120, spacing=10.0).num_censored
    1
    """

    steps: Floats
    """Of each seed; infinite where it never had it."""
    last: int
    """Steps of the run."""
    spacing: float
    """Steps between the evaluations around it, mean over the seeds that had it."""

    @property
    def num_censored(self) -> int:
        return int(np.isinf(self.steps).sum())

    def log_steps(self, *, beyond: float) -> Floats:
        """Natural logarithms; a seed that never had it counts as `beyond` times the run."""
        return np.log(np.where(np.isinf(self.steps), beyond * self.last, self.steps))

    @property
    def log_error(self) -> float:
        """Standard deviation of a log step that may lie anywhere between the two evaluations around it."""
        reached = self.steps[np.isfinite(self.steps)]
        return self.spacing / math.sqrt(12) / float(reached.mean()) if len(reached) else 0.0


def steps_to(tuned: Tuned, accuracy: float) -> Reached:
    """First step at which each seed's test accuracy is so high, linear between evaluations; never less than 1."""
    reached: list[float] = []
    spacings: list[float] = []
    for cell in tuned.cells:
        curve = 1 - np.nan_to_num(cell.test, nan=1.0)
        above = np.flatnonzero(curve >= accuracy)
        if not len(above):
            reached.append(math.inf)
            continue
        place = int(above[0])
        if place == 0:
            reached.append(1.0)
            continue
        before, after = cell.steps[place - 1], cell.steps[place]
        share = float((accuracy - curve[place - 1]) / (curve[place] - curve[place - 1]))
        reached.append(max(1.0, before + share * (after - before)))
        spacings.append(float(after - before))
    spacing = float(np.mean(spacings)) if spacings else 0.0
    return Reached(steps=np.array(reached), last=tuned.surface.arm.steps, spacing=spacing)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plateau:
    """How many decades of learning rates are nearly as good as the best.

    >>> Plateau(decades=np.array([0.5, 0.7]), ends=(1e-3, 4e-3), spacing=0.25, error=0.1).spacing
    0.25
    """

    decades: Floats
    """Of each seed."""
    ends: tuple[float, float]
    """Lowest and highest rate on it, geometric means over seeds."""
    spacing: float
    """Decades between neighbouring rates."""
    error: float
    """Standard error that the grid leaves, which all seeds share."""


def plateau(surface: Surface, *, drop: float) -> Plateau:
    """Decades of rates whose final accuracy is at most `drop` below the peak, per seed; linear in log rate.

    The peak of a seed is its test accuracy at the rate that its own validation prefers, so that the largest of several
    noisy numbers does not raise the bar. A diverged cell has accuracy 0.

    Where an accuracy leaps from one rate to the next the end lies anywhere between the two: uniform, with the standard
    deviation spacing / sqrt(12), times the share 1 - drop / leap that a straight line can't tell. Two such ends of one
    arm leave at most spacing / 2, that of a number of grid points in an interval.

    Raises:
        Refused: rates that are not evenly spaced, or a plateau that reaches the edge of the grid.
    """
    spacing = _spacing(surface)
    accuracy, preferred = _final(surface.test), np.argmax(_final(surface.validation), axis=1)
    bars = accuracy[np.arange(len(accuracy)), preferred] - drop
    above = accuracy >= bars[:, None]
    for column, side, which in ((0, "below", "lowest"), (-1, "above", "highest")):
        if above[:, column].any():
            raise Refused(
                f"the plateau of {surface.arm.label} reaches its {which} learning rate",
                f"train it at rates {side} {surface.rates[column]:.3g}",
            )
    rows = list(zip(accuracy, bars, strict=True))
    decades = np.array([spacing * _measure(row, bar) for row, bar in rows])
    places = np.mean([_outermost(row, bar) for row, bar in rows], axis=0)
    lowest = math.log10(surface.rates[0])
    low, high = np.mean([_blurred(row, inside, drop) for row, inside in zip(accuracy, above, strict=True)], axis=0)
    error = spacing * math.sqrt((low**2 + high**2 + low * high) / 12)
    ends = (float(10 ** (lowest + spacing * places[0])), float(10 ** (lowest + spacing * places[1])))
    return Plateau(decades=decades, ends=ends, spacing=spacing, error=error)


def _final(errors: Floats) -> Floats:
    """Accuracies at the end, (seed, rate)."""
    return 1 - np.where(np.isfinite(errors), errors, 1.0)


def _spacing(surface: Surface) -> float:
    """Decades between neighbouring rates."""
    label = surface.arm.label
    if surface.num_rates < 3:
        raise Refused(f"{label} has {surface.num_rates} learning rates, and a plateau needs 3", "more rates")
    gaps = np.diff(np.log10(surface.rates))
    spacing = float(gaps.mean())
    if np.abs(gaps - spacing).max() > EVEN * spacing:
        raise Refused(f"the learning rates of {label} are not evenly spaced", "the missing rates, or a fixed grid")
    return spacing


def _measure(accuracy: Floats, bar: float) -> float:
    """Length of the rates at or above a bar, in spacings, linear between grid points."""
    left, right = accuracy[:-1] - bar, accuracy[1:] - bar
    rise = np.abs(right - left)
    crossing = np.maximum(left, right) / np.where(rise > 0, rise, 1.0)
    inside = (left >= 0) & (right >= 0)
    return float(np.where(inside, 1.0, np.clip(crossing, 0.0, 1.0)).sum())


def _outermost(accuracy: Floats, bar: float) -> tuple[float, float]:
    """Where the accuracy first and last crosses a bar that neither end of the grid reaches, in spacings."""
    first, last = np.flatnonzero(accuracy >= bar)[[0, -1]]
    up = (bar - accuracy[first - 1]) / (accuracy[first] - accuracy[first - 1])
    down = (accuracy[last] - bar) / (accuracy[last] - accuracy[last + 1])
    return float(first - 1 + up), float(last + down)


def _blurred(accuracy: Floats, inside: Floats, drop: float) -> tuple[float, float]:
    """At the lower and the upper end of the plateau, the share of a spacing that a straight line can't tell."""
    first, last = np.flatnonzero(inside)[[0, -1]]
    leaps = float(accuracy[first] - accuracy[first - 1]), float(accuracy[last] - accuracy[last + 1])
    low, high = (max(0.0, 1 - drop / leap) if leap > 0 else 0.0 for leap in leaps)
    return low, high
