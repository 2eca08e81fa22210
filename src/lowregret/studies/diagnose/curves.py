"""The shape of a loss curve in a few robust numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lowregret.studies.diagnose.view import Series

Floats = NDArray[np.float64]

NEIGHBOURS = 15
"""Steps of a running median: wide enough that a spike of a few steps can't be its middle."""
ROBUST_SIGMAS = 8.0
"""Distance from the running median at which a step is a spike; the tails of losses of small batches reach about 6."""
MAD_TO_SIGMA = 1.4826


def at(series: Series, step: float) -> float:
    """Loss at a step, linear in log(1 + step) between measurements: a learning curve's chords are short there.

    >>> at(((0, 2.0), (3, 1.0)), 1)
    1.5
    """
    steps = [math.log1p(s) for s, _ in series]
    return float(np.interp(math.log1p(step), steps, [loss for _, loss in series]))


def drop(series: Series) -> float:
    """How far the loss fell from the first to the last measurement.

    >>> drop(((0, 2.0), (8, 1.5)))
    0.5
    """
    return series[0][1] - series[-1][1]


def last_doubling(series: Series) -> float:
    """Share of the whole drop that came in the last doubling of steps.

    1/2 where the loss falls in proportion to steps (the rate is too low, or the run too short), about 1 / log2(steps)
    where it falls linearly in log steps (as a tuned run does), 0 where it has come to rest.

    >>> linear = tuple((step, 2.0 - step / 64) for step in (0, 8, 16, 32, 64))
    >>> last_doubling(linear)
    0.5
    """
    whole = drop(series)
    return (at(series, series[-1][0] / 2) - series[-1][1]) / whole if whole > 0 else 0.0


def lowest(series: Series) -> tuple[int, float]:
    """Step and value of the minimum."""
    return min(series, key=lambda point: point[1])


def spikes(series: Series, *, least: float) -> tuple[int, ...]:
    """Steps that stand out above their neighbours by 8 robust standard deviations and by `least`.

    >>> spikes(tuple((k, 9.0 if k == 20 else 1.0) for k in range(40)), least=0.5)
    (20,)
    """
    if len(series) < 2 * NEIGHBOURS:
        return ()
    values = np.array([value for _, value in series])
    excess = values - _running_median(values)
    sigma = MAD_TO_SIGMA * float(np.median(np.abs(excess - np.median(excess))))
    found = np.flatnonzero(excess > max(least, ROBUST_SIGMAS * sigma))
    return tuple(series[int(k)][0] for k in found)


def median_over(series: Series, first: float, last: float) -> float | None:
    """Median of the values in first < step <= last; None where there is none."""
    values = [value for step, value in series if first < step <= last]
    return float(np.median(values)) if values else None


def widening(steps: Sequence[int], gaps: Sequence[float]) -> float:
    """How much a gap grew over the last half of log steps; 0 where it did not grow steadily.

    Steady: its least-squares slope against log steps is positive there and no point lies below the first.

    >>> round(widening((1, 4, 16, 64, 256), (0.0, 0.0, 0.01, 0.02, 0.03)), 6)
    0.02
    """
    later = [(math.log(s), gap) for s, gap in zip(steps, gaps, strict=True) if s >= math.sqrt(max(steps))]
    if len(later) < 3:
        return 0.0
    x, y = np.array(later).T
    slope = float(((x - x.mean()) * (y - y.mean())).sum())
    steady = slope > 0 and bool((y >= y[0]).all())
    return float(y[-1] - y[0]) if steady else 0.0


def _running_median(values: Floats) -> Floats:
    half = NEIGHBOURS // 2
    padded = np.pad(values, half, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, NEIGHBOURS), axis=1)
