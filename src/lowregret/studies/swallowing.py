"""What a fidelity study's cells say: arms that differ in their bf16 arithmetic alone, side by side (science.md, C13).

The faithful arithmetic (one fp32 accumulator; copies rounded stochastically) is the package's own and carries no
variant; the usual one (both terms rounded, then added; copies rounded to nearest) does. Both arms of a pair have the
same seeds and learning rates, so that they are compared cell by cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lowregret.store.study import ForwardFidelity
from lowregret.studies.best_rate import log_best_rates
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, Surface

ADD, NEAREST = "add", "nearest"
USUAL: Mapping[str, str] = {"lora": ADD, "full": NEAREST}
"""Variant of the arms that train in the usual arithmetic, by method."""
FORWARD: Mapping[str, tuple[str, str]] = {"lora": ("accumulator", "add"), "full": ("copy stochastic", "copy nearest")}
"""Names of the faithful and the usual arithmetic among the forward fidelities, by method."""
NORMAL_95 = 1.96
"""Half-width of a 95 % interval in standard errors."""
HALF, NEARLY_ALL = 0.5, 0.95
"""Shares of the faithful drop whose steps are told: the dead zone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """An arm in faithful and in usual arithmetic, on the same seeds and rates.

    >>> sorted(Pair.__dataclass_fields__)
    ['column', 'faithful', 'usual']
    """

    faithful: Surface
    usual: Surface
    column: int
    """Place of the rate with the least mean validation loss over both arms: choosing by one arm alone would take what
    was lucky in it for its gain."""

    @property
    def arm(self) -> Arm:
        """The faithful one."""
        return self.faithful.arm

    @property
    def rate(self) -> float:
        """Learning rate at the column."""
        return self.faithful.rates[self.column]


def pairs(found: Mapping[Arm, Surface]) -> tuple[Pair, ...]:
    """Every faithful arm whose usual twin is there too, adapters by rank, full fine-tuning last, short runs first.

    Args:
        found: on the same seeds (`aligned`).

    Raises:
        Refused: there is none, or a pair has no rate at which all its cells ended.
    """
    made: list[Pair] = []
    for arm in sorted(found, key=_order):
        usual = found.get(replace(arm, variant=USUAL[arm.method]))
        if not arm.variant and usual is not None:
            made.append(_pair(found[arm], usual))
    if not made:
        raise Refused("no arm was trained in both arithmetics", "a fidelity study in bf16")
    return tuple(made)


def labels(found: Sequence[Pair]) -> dict[Arm, str]:
    """Short names of the faithful arms; with the width where a study has several bases."""
    widths = {pair.arm.width for pair in found}
    return {
        pair.arm: f"{pair.arm.label} width {pair.arm.width}" if len(widths) > 1 else pair.arm.label for pair in found
    }


def shortest(found: Sequence[Pair]) -> tuple[Pair, ...]:
    """The pairs with the fewest steps: what a claim about small updates is about."""
    fewest = min(pair.arm.steps for pair in found)
    return tuple(pair for pair in found if pair.arm.steps == fewest)


def _order(arm: Arm) -> tuple[float, ...]:
    return (arm.steps, math.inf if arm.rank is None else arm.rank, arm.alpha, arm.width, arm.batch_size)


def _pair(faithful: Surface, usual: Surface) -> Pair:
    shared = [rate for rate in faithful.rates if rate in usual.rates]
    one, other = _at_rates(faithful, shared), _at_rates(usual, shared)
    mean = (one.validation + other.validation).mean(axis=0) if shared else np.array([])
    if not np.isfinite(mean).any():
        raise Refused(
            f"{one.arm.label} has no learning rate at which both arithmetics trained to the end", "lower rates"
        )
    return Pair(faithful=one, usual=other, column=int(np.argmin(mean)))


def _at_rates(surface: Surface, rates: Sequence[float]) -> Surface:
    """The table at some of its rates."""
    columns = [surface.rates.index(rate) for rate in rates]
    kept = [row * surface.num_rates + column for row in range(len(surface.seeds)) for column in columns]
    return replace(
        surface,
        rates=tuple(rates),
        validation=surface.validation[:, columns],
        test=surface.test[:, columns],
        cells=tuple(surface.cells[k] for k in kept),
        outcomes=tuple(surface.outcomes[k] for k in kept),
    )


def cells_at(surface: Surface, column: int) -> tuple[Outcome, ...]:
    """The cells of each seed at one rate."""
    return surface.outcomes[column :: surface.num_rates]


def measured_steps(surface: Surface, column: int) -> tuple[int, ...]:
    """Steps after which every seed's forward fidelity was measured at a rate, ascending."""
    steps = [{row.step for row in outcome.fidelity} for outcome in cells_at(surface, column)]
    return tuple(sorted(set[int].intersection(*steps))) if steps else ()


def forward(surface: Surface, column: int, *, step: int, arithmetic: str) -> tuple[ForwardFidelity, ...]:
    """Forward fidelity of each seed; empty where one of them has none."""
    rows = [
        [row for row in outcome.fidelity if (row.step, row.arithmetic) == (step, arithmetic)]
        for outcome in cells_at(surface, column)
    ]
    return tuple(own[0] for own in rows) if all(rows) else ()


def arithmetics(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """Names of the arithmetics that were measured, in the order of the log."""
    return tuple(dict.fromkeys(row.arithmetic for outcome in outcomes for row in outcome.fidelity))


def values_of(rows: Sequence[ForwardFidelity]) -> Floats:
    """The estimates, one a seed."""
    return np.array([row.fidelity for row in rows])


def shared_error(rows: Sequence[ForwardFidelity]) -> float:
    """Standard error that the held-out sequences leave: all seeds are measured on the same ones."""
    return float(np.mean([row.high - row.low for row in rows])) / 2 / NORMAL_95


def drops(surface: Surface, column: int) -> tuple[tuple[int, ...], Floats]:
    """Evaluated steps from the first on, and how far the test loss has fallen by then, (seed, step).

    Raises:
        Refused: a cell of the rate did not end, or was not evaluated before its first step.
    """
    cells = cells_at(surface, column)
    steps = cells[0].steps
    if any(cell.steps != steps or cell.diverged for cell in cells) or steps[0] != 0 or len(steps) < 2:
        raise Refused(
            f"{surface.arm.label} was not evaluated alike before and after its steps", "cells that train to the end"
        )
    losses = np.array([cell.test for cell in cells])
    return steps[1:], losses[:, :1] - losses[:, 1:]


def shares(pair: Pair, column: int | None = None) -> tuple[tuple[int, ...], Floats]:
    """Trajectory fidelity: the usual arm's loss drop over the faithful one's, each evaluated in its own arithmetic.

    Args:
        pair: of arms.
        column: place of the rate; None: the pair's own.

    Returns:
        Steps, and shares (seed, step); not a number where the faithful loss has not fallen.

    Raises:
        Refused: see `drops`.
    """
    column = pair.column if column is None else column
    steps, faithful = drops(pair.faithful, column)
    others, usual = drops(pair.usual, column)
    if others != steps:
        raise Refused(f"the arms of {pair.arm.label} were evaluated at different steps", "one eval_every for both")
    return steps, np.where(faithful > 0, usual / np.where(faithful > 0, faithful, 1.0), np.nan)


def reached(steps: Sequence[int], curve: Floats, share: float) -> int | None:
    """First step from which on a curve of shares stays at or above one; None where it never does.

    >>> reached((1, 2, 4), np.array([0.2, 0.6, 0.9]), 0.5)
    2
    """
    below = [place for place, value in enumerate(curve) if not value >= share]
    first = below[-1] + 1 if below else 0
    return steps[first] if first < len(steps) else None


def log10_shift(pair: Pair) -> Floats:
    """Decades by which LR* is higher in the usual arithmetic, per seed.

    Raises:
        Refused: see `log_best_rates`.
    """
    return (log_best_rates(pair.usual) - log_best_rates(pair.faithful)) / math.log(10)


def cut_at(outcomes: Sequence[Outcome], step: int) -> list[Outcome]:
    """The cells as they were after some of their steps: at a constant learning rate, shorter runs.

    Cells that were not evaluated at the step are left out.
    """
    cut: list[Outcome] = []
    for outcome in outcomes:
        if step in outcome.steps:
            end = outcome.steps.index(step) + 1
            arm = replace(outcome.arm, steps=step)
            series = {name: getattr(outcome, name)[:end] for name in ("steps", "validation", "test")}
            cut.append(replace(outcome, arm=arm, diverged=False, **series))
    return cut
