"""What is estimated from a study's cells: curves, departures, slopes, ratios and contrasts, each per seed.

Per seed, because seeds are the unit of replication: arms share the data order within a seed, and intervals are over
seeds. Best rates and tuned losses stand in `best_rate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lowregret.studies.best_rate import log_best_rates, tuned_test_losses
from lowregret.studies.outcome import Arm
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, Surface

SIGMAS = 3.0
"""Standard deviations over seeds that a curve must leave the reference by (science.md, C6)."""


def pointwise_minimum(surface: Surface) -> tuple[tuple[int, ...], Floats]:
    """Steps, and at each the test loss at the learning rate that is best at that step (paper, figure 1).

    The rate is chosen by the seeds' mean validation loss at the step, so that the minimum is not biased low by noise of
    the split that it is read from; one rate for all seeds. A cell that diverged later counts for as long as it went.

    Returns:
        Steps of the longest curve, and losses (seed, step); infinite where no cell reached the step.
    """
    steps = max((outcome.steps for outcome in surface.outcomes), key=len)
    shape = (len(surface.seeds), surface.num_rates, len(steps))
    validation, test = (
        _curves([getattr(outcome, split) for outcome in surface.outcomes], len(steps)).reshape(shape)
        for split in ("validation", "test")
    )
    chosen = np.argmin(validation.mean(axis=0), axis=0)
    return steps, test[:, chosen, np.arange(len(steps))]


def _curves(series: Sequence[Sequence[float]], length: int) -> Floats:
    """Series as rows; what a cell did not reach, or what is no number, is infinite."""
    if all(len(one) == length for one in series):
        table = np.array(series)
    else:
        table = np.full((len(series), length), np.inf)
        for row, one in zip(table, series, strict=True):
            row[: len(one)] = one
    return np.where(np.isfinite(table), table, np.inf)


def departure_steps(arms: Sequence[Surface], reference: Surface, *, margin: float) -> Floats:
    """First step from which on each arm's pointwise minimum stays above the reference's by max(3 sigma, margin).

    Sigma at a step is the standard deviation over seeds of the gap at that step, pooled over arms. An arm that comes
    back has not left: with adaptive grids an arm whose rates reach higher gains more in its first steps.

    Args:
        arms: on the same seeds as the reference.
        reference: the curve that is left.
        margin: nats a token.

    Returns:
        (arm, seed); infinite where an arm never departs.

    Raises:
        Refused: the arms were not measured at the same steps.
    """
    steps, base = pointwise_minimum(reference)
    curves = [pointwise_minimum(arm) for arm in arms]
    if any(own != steps for own, _ in curves):
        raise Refused("the arms were measured at different steps", "train all of them with the same eval_every")
    with np.errstate(invalid="ignore"):
        gaps = np.nan_to_num(np.stack([curve - base for _, curve in curves]), nan=np.inf, posinf=np.inf, neginf=-np.inf)
        variance = gaps.var(axis=1, ddof=1)
    sigma = np.sqrt(np.where(np.isfinite(variance), variance, 0.0).mean(axis=0))
    away = gaps > np.maximum(SIGMAS * sigma, margin)
    away[:, :, np.array(steps) == 0] = False
    stays = np.logical_and.accumulate(away[:, :, ::-1], axis=2)[:, :, ::-1]
    first = np.array(steps, dtype=float)[np.argmax(stays, axis=2)]
    return np.where(stays.any(axis=2), first, np.inf)


def spearman(x: Floats, y: Floats) -> Floats:
    """Rank correlation of x (arm) with each column of y (arm, seed), ties shared; 0 where a column is constant.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([[5.0, 1.0], [6.0, 1.0], [9.0, 1.0]]))
    array([1., 0.])
    """
    a, b = _ranks(x[:, None]), _ranks(y)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.where(norm > 0, (a * b).sum(axis=0) / np.where(norm > 0, norm, 1.0), 0.0)


def _ranks(values: Floats) -> Floats:
    """Mean ranks within each column, from 0."""
    below = (values[None] < values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1)
    return below + (equal - 1) / 2


def slopes(x: Sequence[float] | Floats, y: Floats) -> Floats:
    """Least-squares slope of each column of y (point, seed) on x.

    >>> slopes([0.0, 1.0, 2.0], np.array([[1.0], [3.0], [5.0]]))
    array([2.])
    """
    centred = np.asarray(x) - np.mean(x)
    return centred @ y / (centred @ centred)


def slopes_on_rank(found: Mapping[Arm, Surface]) -> Floats:
    """Slope of log LR* on log rank, per seed.

    Args:
        found: LoRA arms that differ in rank (and, for the control of C3, in alpha with it).

    Raises:
        Refused: see `log_best_rates`.
    """
    logs = np.stack([log_best_rates(surface) for surface in found.values()])
    return slopes(np.log([arm.rank or 1 for arm in found]), logs)


def log_ratios(lora: Surface, full: Surface) -> Floats:
    """Log of LR*(LoRA) / LR*(FullFT), per seed.

    Raises:
        Refused: see `log_best_rates`.
    """
    return log_best_rates(lora) - log_best_rates(full)


def tuned_differences(one: Surface, other: Surface) -> Floats:
    """Tuned test loss of one arm minus the other's, nats a token, paired by seed.

    Raises:
        Refused: see `tuned_test_losses`.
    """
    return tuned_test_losses(one) - tuned_test_losses(other)


def matched(one: Arm, other: Arm, *, tolerance: float) -> bool:
    """Whether two arms have equally many trained parameters, to a relative tolerance.

    >>> a = Arm(method="lora", rank=8, params=1000, batch_size=8, steps=2)
    >>> matched(a, Arm(method="lora", rank=4, params=1015, batch_size=8, steps=2), tolerance=0.02)
    True
    """
    return abs(one.params - other.params) <= tolerance * max(one.params, other.params)


def grid_sizes(found: Mapping[Arm, Surface]) -> tuple[tuple[str, float], ...]:
    """Fewest and most learning rates of an arm: unequal grids bias a minimum, so every finding says them."""
    sizes = [surface.num_rates for surface in found.values()]
    return (("rates of an arm, fewest", float(min(sizes))), ("rates of an arm, most", float(max(sizes))))
