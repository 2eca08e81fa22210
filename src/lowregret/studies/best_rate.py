"""LR* of an arm: the vertex of a quadratic in log LR, per seed; and the loss at a tuned rate.

Guarantees: no estimate where the minimum lies on the grid's edge or the curve has no minimum; the validation split
chooses, the test split is reported (science.md section 4).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, Surface

LEAST_POINTS, MOST_POINTS = 5, 7
"""Of a fit (science.md section 4)."""
WINDOW = 1.2
"""Rates beyond this distance in log LR (half a decade and a little) enter only to make up five points: on the upper
side losses soon rise faster than any quadratic."""

Edge = Literal["low", "high", "diverges"]


def grid_edge(surface: Surface) -> Edge | None:
    """Which edge of the grid the minimum of the seeds' mean validation loss lies on; None where it is inside.

    `diverges`: on the highest rate that trains, while a higher one has diverged.

    Raises:
        Refused: every cell diverged, or there is no cell.
    """
    finite, best = _minimum(surface)
    if best == finite[0]:
        return "low"
    if best == finite[-1]:
        return "high" if best == surface.num_rates - 1 else "diverges"
    return None


def log_best_rates(surface: Surface) -> Floats:
    """ln LR* of each seed: the vertex of its own quadratic over the 5-7 rates around the seeds' common minimum.

    All seeds are fitted at the same rates, so that they differ by noise and not by the choice of points.

    Raises:
        Refused: the minimum lies on the edge, fewer than five rates, or a seed's curve has no minimum among them.
    """
    window = fit_window(surface)
    x = surface.log_rates[window]
    centre = float(x.mean())
    coefficients = _least_squares(_centred(x)) @ surface.validation[:, window].T
    curvature, slope = coefficients[2], coefficients[1]
    if (curvature <= 0).any():
        raise _flat(surface, int(np.argmin(curvature)))
    vertex: Floats = centre - slope / (2 * curvature)
    outside = (vertex < x[0]) | (vertex > x[-1])
    if outside.any():
        raise _flat(surface, int(np.argmax(outside)))
    return vertex


def fit_error(surface: Surface) -> float:
    """Standard error of one seed's ln LR* that the noise of its cells explains; what more rates could reduce.

    From the scatter of losses about each seed's quadratic, less what all seeds share (there the curve is no quadratic).
    The spread of ln LR* over seeds beyond it is the seeds' own, and only more seeds reduce its share of the interval.

    Raises:
        Refused: see `log_best_rates`.
    """
    window = fit_window(surface)
    x = surface.log_rates[window]
    centred = _centred(x)
    losses = surface.validation[:, window].T
    solver = _least_squares(centred)
    coefficients = solver @ losses
    residuals = losses - np.vander(centred, 3, increasing=True) @ coefficients
    residuals -= residuals.mean(axis=1, keepdims=True)
    freedom = max(1, (len(surface.seeds) - 1) * (len(window) - 3))
    variance = float((residuals**2).sum()) / freedom
    slope, curvature = coefficients[1].mean(), coefficients[2].mean()
    gradient = solver.T @ np.array([0.0, -1 / (2 * curvature), slope / (2 * curvature**2)])
    return math.sqrt(variance * float(gradient @ gradient))


def fit_window(surface: Surface) -> NDArray[np.intp]:
    """Indices of the rates that the quadratic is fitted to, ascending.

    Raises:
        Refused: the minimum lies on the edge, or there are fewer than five rates at which all seeds trained.
    """
    refuse_edge(surface)
    finite, best = _minimum(surface)
    distance = np.abs(surface.log_rates[finite] - math.log(surface.rates[best]))
    order = np.argsort(distance, kind="stable")
    near = int((distance <= WINDOW).sum())
    chosen = order[: min(MOST_POINTS, max(LEAST_POINTS, near))]
    if len(chosen) < LEAST_POINTS:
        raise Refused(
            f"{surface.arm.label} has {len(chosen)} learning rates that train, and a quadratic needs {LEAST_POINTS}",
            f"{LEAST_POINTS - len(chosen)} more rates around {surface.rates[best]:.3g}",
        )
    return np.sort(finite[chosen])


def refuse_edge(surface: Surface) -> None:
    """Refuse a minimum on the grid's edge.

    Raises:
        Refused: it is.
    """
    edge = grid_edge(surface)
    if edge is None:
        return
    lowest, highest = surface.rates[0], surface.rates[-1]
    _, best = _minimum(surface)
    settles = {
        "low": f"rates below {lowest:.3g}",
        "high": f"rates above {highest:.3g}",
        "diverges": f"rates between {surface.rates[best]:.3g} and the one that diverged",
    }[edge]
    where = {"low": "lowest", "high": "highest", "diverges": "highest stable"}[edge]
    raise Refused(f"the minimum of {surface.arm.label} lies on its {where} learning rate", f"train it at {settles}")


def best_point(surface: Surface) -> int:
    """Place of the learning rate with the lowest mean validation loss over the seeds, as it was measured.

    For curves that no parabola follows, such as error rates that leap where a policy collapses.

    Raises:
        Refused: it lies on the grid's edge; the highest rate that trains is none where a higher one diverged.
    """
    if grid_edge(surface) != "diverges":
        refuse_edge(surface)
    return _minimum(surface)[1]


def tuned_test_losses(surface: Surface) -> Floats:
    """Test loss of each seed at the learning rate that validation chooses; nats a token.

    The rate is the vertex of the parabola through the minimum of the seeds' mean validation loss and its two
    neighbours; each seed's test loss there is read from the cubic through these and the next lower rate (from the
    parabola where there is none). Taking the best point itself would favour the arm whose grid happens to hit its
    minimum, by up to curvature x (spacing/2)^2 / 2 (0.0015 nats at a quarter of a decade: a third of the parity
    margin), and the arm with more points; a parabola alone leaves a bias that is seen where noise is below 0.0003 nats.
    Where the next higher rate diverged, the best point itself.

    Raises:
        Refused: the minimum lies on the grid's edge.
    """
    finite, best = _minimum(surface)
    if grid_edge(surface) == "diverges":
        return surface.test[:, best]
    refuse_edge(surface)
    place = int(np.searchsorted(finite, best))
    three = finite[place - 1 : place + 2]
    x = surface.log_rates[three]
    # Newton's divided differences of the mean validation loss.
    mean = surface.validation[:, three].mean(axis=0)
    below, above = (mean[1] - mean[0]) / (x[1] - x[0]), (mean[2] - mean[1]) / (x[2] - x[1])
    curvature = (above - below) / (x[2] - x[0])
    at = float(x[1])
    if curvature > 0:
        at = float(np.clip((x[0] + x[1]) / 2 - below / (2 * curvature), x[0], x[2]))
    read = finite[max(0, place - 2) : place + 2]
    return surface.test[:, read] @ _lagrange(surface.log_rates[read], at)


def _lagrange(nodes: Floats, at: float) -> Floats:
    """Weights of values at nodes in their interpolating polynomial at a point.

    >>> _lagrange(np.array([0.0, 1.0]), 0.25)
    array([0.75, 0.25])
    """
    apart = nodes[:, None] - nodes[None] + np.eye(len(nodes))
    share = (at - nodes)[None] / apart
    np.fill_diagonal(share, 1.0)
    return share.prod(axis=1)


def _minimum(surface: Surface) -> tuple[NDArray[np.intp], int]:
    """Rates at which every seed trained to the end, and the best of them by mean validation loss."""
    if surface.num_rates == 0:
        raise Refused(f"{surface.arm.label} has no learning rate that every seed was trained at", "finish the study")
    mean = surface.validation.mean(axis=0)
    finite = np.flatnonzero(np.isfinite(mean))
    if not len(finite):
        raise Refused(f"every learning rate of {surface.arm.label} diverged", f"rates below {surface.rates[0]:.3g}")
    return finite, int(finite[np.argmin(mean[finite])])


def _flat(surface: Surface, row: int) -> Refused:
    return Refused(
        f"seed {surface.seeds[row]} of {surface.arm.label} has no minimum among the fitted rates: its curve is flatter "
        "than its noise",
        "more rates on either side of the minimum, or more held-out examples",
    )


def _centred(x: Floats) -> tuple[float, ...]:
    """Rounded, so that grids of one spacing share their solver."""
    centre = float(x.mean())
    return tuple(round(float(each) - centre, 9) for each in x)


@lru_cache(maxsize=1024)
def _least_squares(x: tuple[float, ...]) -> Floats:
    """(3, len(x)): maps losses at x to the coefficients of 1, x, x^2."""
    return np.linalg.pinv(np.vander(x, 3, increasing=True))
