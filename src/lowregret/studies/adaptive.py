"""The adaptive grid: which learning rates an arm is trained at next, given what it has shown. Pure functions.

Coarse to fine: three rates half a decade apart around the start; further out while the minimum lies on the edge; then
a quarter of a decade around the minimum until it has two neighbours on either side; then more around the vertex until
the interval on log LR* is as narrow as asked, as far as rates can make it. Cells under way that surely won't be near
the minimum are stopped by the run itself (`training/dominated.py`). All rates lie on a lattice of quarter spacings
around the start, so that questions which share arms share cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lowregret.specs import Arm, GridSpec
from lowregret.studies.best_rate import fit_error, grid_edge, log_best_rates
from lowregret.studies.outcome import Outcome
from lowregret.studies.students_t import Floats, quantile, t_interval
from lowregret.studies.surface import Refused, Surface, surfaces

PAPER_RANKS = tuple(2**k for k in range(10))
"""1 to 512."""
SAME = 0.25
"""Rates nearer than this share of the grid's spacing, in log LR, count as one."""
NEIGHBOURS = 2
"""On either side of the minimum (science.md, section 4)."""


@dataclass(frozen=True, kw_only=True)
class GridStep:
    """What an adaptive grid wants next.

    >>> next_step(1e-3, (), GridSpec()).rates
    (0.000316, 0.001, 0.00316)
    """

    rates: tuple[float, ...]
    """New learning rates, ascending; empty when done."""
    reason: str
    """Why these, or why it is done."""

    @property
    def done(self) -> bool:
        return not self.rates


def next_step(start: float, outcomes: Sequence[Outcome], grid: GridSpec) -> GridStep:
    """The next rates of one arm.

    Args:
        start: the planner's learning rate, or `learned_start`.
        outcomes: all finished cells of the arm. It is asked again when every seed has finished every rate.
        grid: spacing, cap on the number of rates, and the half-width that is narrow enough.
    """
    spacing = 2 * math.log(grid.factor)
    if not outcomes:
        return GridStep(rates=_rounded([start * math.exp(k * spacing) for k in (-1, 0, 1)]), reason="the start")
    (surface,) = surfaces(outcomes).values()
    room = grid.most_points - surface.num_rates
    if room <= 0:
        return GridStep(rates=(), reason=f"{surface.num_rates} rates, the most that the grid allows")
    step = _wanted(surface, grid, spacing)
    return GridStep(rates=step.rates[:room], reason=step.reason)


def next_rates(start: float, outcomes: Sequence[Outcome], grid: GridSpec) -> tuple[float, ...]:
    """The rates of `next_step`; empty when done."""
    return next_step(start, outcomes, grid).rates


def _wanted(surface: Surface, grid: GridSpec, spacing: float) -> GridStep:
    try:
        edge = grid_edge(surface)
    except Refused:
        lower = surface.rates[0] * math.exp(-spacing)
        return GridStep(rates=_rounded([lower]), reason="every rate diverged")
    if edge == "low":
        return GridStep(rates=_rounded([_further_down(surface, spacing)]), reason="the minimum is the lowest rate")
    if edge == "high":
        return GridStep(
            rates=_rounded([surface.rates[-1] * math.exp(spacing)]), reason="the minimum is the highest rate"
        )
    if edge == "diverges":
        return _below_divergence(surface, grid)
    missing = _neighbours(surface, grid)
    return GridStep(rates=missing, reason="neighbours of the minimum") if missing else _refined(surface, grid)


def _further_down(surface: Surface, spacing: float) -> float:
    """Below the grid; or, where lower cells were stopped, between them and the minimum."""
    best = _best(surface)
    below = [rate for rate in surface.rates if rate < best]
    return math.sqrt(best * below[-1]) if below else best * math.exp(-spacing)


def _diverges_from(surface: Surface) -> float:
    """The lowest rate above the minimum that diverged."""
    best = _best(surface)
    losses = zip(surface.rates, surface.validation.mean(axis=0), strict=True)
    return min((rate for rate, loss in losses if rate > best and not math.isfinite(loss)), default=math.inf)


def _best(surface: Surface) -> float:
    return surface.rates[int(np.argmin(surface.validation.mean(axis=0)))]


def _below_divergence(surface: Surface, grid: GridSpec) -> GridStep:
    """Between the best rate, above which all diverge, and the lowest of those; no closer than a spacing."""
    best = _best(surface)
    above = _diverges_from(surface)
    if math.log(above / best) <= math.log(grid.factor) * (1 + SAME):
        return GridStep(rates=(), reason=f"every rate above {best:.3g}, the best, diverges")
    return GridStep(rates=_rounded([math.sqrt(best * above)]), reason="the minimum is the highest rate that trains")


def _neighbours(surface: Surface, grid: GridSpec) -> tuple[float, ...]:
    """Rates that are missing for two neighbours on either side, one spacing apart.

    None is wanted at or just below a rate that diverged.
    """
    best, log_factor = _best(surface), math.log(grid.factor)
    limit = _diverges_from(surface) * grid.factor**-SAME
    wanted = [best * grid.factor**k for k in range(-NEIGHBOURS, NEIGHBOURS + 1) if k]
    return _rounded(
        [
            rate
            for rate in wanted
            if rate < limit and all(abs(math.log(rate / own)) > SAME * log_factor for own in surface.rates)
        ]
    )


def _refined(surface: Surface, grid: GridSpec) -> GridStep:
    """More rates around the vertex, until the noise of the fit alone would give an interval as narrow as asked.

    The interval itself does not decide: stopping where it happens to be narrow would make it cover too rarely. The
    scatter about the fits is independent of where the vertices lie. What width is left is the seeds' own.
    """
    log_factor = math.log(grid.factor)
    try:
        logs = log_best_rates(surface)
        centre, reason = float(logs.mean()), "the noise of the fit leaves log LR* wider than asked"
        if len(logs) < 2:
            return GridStep(rates=(), reason="the minimum is found; one seed gives no interval")
        if quantile(0.975, len(logs) - 1) * fit_error(surface) / math.sqrt(len(logs)) <= grid.width:
            return GridStep(rates=(), reason=_located_text(logs, grid))
    except Refused as refused:
        centre, reason = math.log(_best(surface)), refused.reason
    # Between the outer neighbours first: a rate far from the vertex says more about it, and the fit's window has these.
    offsets = (1.5, -1.5, 0.5, -0.5, 2.5, -2.5)
    free = [
        math.exp(centre + offset * log_factor)
        for offset in offsets
        if centre + offset * log_factor < math.log(_diverges_from(surface))
        and all(abs(centre + offset * log_factor - math.log(own)) > SAME * log_factor for own in surface.rates)
    ]
    if not free:
        return GridStep(rates=(), reason=f"{reason}, and more rates would not narrow it")
    return GridStep(rates=_rounded(free[:2]), reason=reason)


def _located_text(logs: Floats, grid: GridSpec) -> str:
    low, high = t_interval(logs)
    half = (high - low) / 2
    own = "" if half <= grid.width else "; seeds differ by more than the fit's noise: more seeds, not more rates"
    return f"LR* is {math.exp(float(logs.mean())):.3g}, to {math.exp(half):.2f}x{own}"


def learned_start(start: float, located: Mapping[float, float]) -> float:
    """A start corrected by where the minima of arms that are already located lie.

    An arm that waits for its neighbours' LR* needs five rates instead of six or seven: the planner is off by about the
    same factor for every rank of one base and data set.

    Args:
        start: the planner's rate for this arm.
        located: the planner's rate -> LR*, of arms of the same method.

    >>> round(learned_start(1e-3, {2e-3: 4e-3, 1e-3: 2e-3}), 6)
    0.002
    """
    if not located:
        return start
    return start * math.exp(float(np.mean([math.log(best / planned) for planned, best in located.items()])))


def next_cells(starts: Mapping[Arm, float], outcomes: Sequence[Outcome], grid: GridSpec) -> dict[Arm, GridStep]:
    """The next rates of every arm of a question, where arms learn from each other.

    Of each method and variant the middle arm goes first; the others start from what it found (`learned_start`). An arm
    that waits is left out; the grid is done when every arm is there and done. Rates lie on the lattice of quarter
    spacings around the planner's rate, so that another question with the same arm asks for the same cells.

    Args:
        starts: the planner's rate of every arm, in order of rank.
        outcomes: all finished cells.
        grid: of every arm.
    """
    own: dict[Arm, list[Outcome]] = {arm: [] for arm in starts}
    for outcome in outcomes:
        own[outcome.arm].append(outcome)
    steps: dict[Arm, GridStep] = {}
    for kind in sorted({(arm.method, arm.variant) for arm in starts}):
        arms = [arm for arm in starts if (arm.method, arm.variant) == kind]
        scout = arms[len(arms) // 2]
        steps[scout] = next_step(starts[scout], own[scout], grid)
        if steps[scout].done:
            located = _located(starts[scout], own[scout])
            steps |= {arm: next_step(learned_start(starts[arm], located), own[arm], grid) for arm in arms}
    return {arm: _on_lattice(step, starts[arm], own[arm], grid) for arm, step in steps.items()}


def _on_lattice(step: GridStep, start: float, outcomes: Sequence[Outcome], grid: GridSpec) -> GridStep:
    """The step with its rates moved to the lattice of quarter spacings, unless they would meet a rate that is there."""
    gap = math.log(grid.factor) / 4
    taken = {outcome.lr for outcome in outcomes}
    rates: set[float] = set()
    for rate in step.rates:
        (moved,) = _rounded([start * math.exp(gap * round(math.log(rate / start) / gap))])
        rates.add(rate if moved in taken | rates else moved)
    return GridStep(rates=tuple(sorted(rates)), reason=step.reason)


def _located(start: float, outcomes: Sequence[Outcome]) -> dict[float, float]:
    (surface,) = surfaces(outcomes).values()
    try:
        return {start: math.exp(float(log_best_rates(surface).mean()))}
    except Refused:
        return {}


def paper_grid(
    starts: Mapping[Arm, float], *, points: int = 6, factor: float = GridSpec().factor
) -> dict[Arm, tuple[float, ...]]:
    """Equally many rates for every arm, evenly in log rate around the planner's (the paper's guide: six).

    Args:
        starts: of ranks 1 to 512 (`PAPER_RANKS`) and FullFT.
        points: of each arm.
        factor: between neighbours.
    """
    return {
        arm: _rounded([start * factor ** (k - (points - 1) / 2) for k in range(points)])
        for arm, start in starts.items()
    }


def _rounded(rates: Sequence[float]) -> tuple[float, ...]:
    """Three digits: a rate is part of a cell's identity, and its last bits should not be."""
    return tuple(sorted(float(f"{rate:.2e}") for rate in rates))
