"""Which cells a question still wants, given what it has: its grid over its arms and seeds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lowregret.errors import SpecError
from lowregret.specs import GridSpec, QuestionSpec
from lowregret.studies.adaptive import next_rates
from lowregret.studies.outcome import Outcome
from lowregret.studies.questions import ArmTemplate

Wanted = tuple[ArmTemplate, float, int]
"""Arm, learning rate, seed."""


def wanted_cells(
    question: QuestionSpec, templates: Sequence[ArmTemplate], outcomes: Sequence[Outcome]
) -> tuple[Wanted, ...]:
    """Every cell that the question asks for now, finished ones included.

    Args:
        question: as asked.
        templates: its arms.
        outcomes: its finished cells; an adaptive grid asks for more once all that it asked for are here.

    Raises:
        SpecError: a fixed grid without rates.
    """
    rates = _GRIDS["fixed" if question.protocol == "early" else question.grid.kind]
    wanted: list[Wanted] = []
    for template in templates:
        own = [outcome for outcome in outcomes if outcome.arm == template.arm]
        for lr in rates(question, template, own):
            wanted += [(template, lr, seed) for seed in question.seeds]
    return tuple(wanted)


def _fixed(question: QuestionSpec, template: ArmTemplate, outcomes: Sequence[Outcome]) -> tuple[float, ...]:
    """The stated rates; `early` compares arms at one rate, the planner's where none is stated."""
    grid = question.grid
    rates = grid.full_rates if template.arm.method == "full" and grid.full_rates else grid.rates
    if rates:
        return rates
    if question.protocol == "early":
        return (_rounded(template.start),)
    raise SpecError(f"{question.protocol}: grid.rates is missing; a fixed grid needs its learning rates")


def _paper(question: QuestionSpec, template: ArmTemplate, outcomes: Sequence[Outcome]) -> tuple[float, ...]:
    """Equally many rates for every arm, spread evenly in log rate around the planner's."""
    grid = question.grid
    return tuple(spread(template.start, grid))


def _adaptive(question: QuestionSpec, template: ArmTemplate, outcomes: Sequence[Outcome]) -> tuple[float, ...]:
    """Those it has, and what the minimum asks for next."""
    asked = tuple(sorted({outcome.lr for outcome in outcomes}))
    more = next_rates(template.start, outcomes, question.grid)
    return tuple(sorted({*asked, *(_rounded(rate) for rate in more)}))


def spread(start: float, grid: GridSpec) -> tuple[float, ...]:
    """`grid.points` rates around a start, `grid.factor` apart.

    >>> spread(1e-3, GridSpec(points=3, factor=10.0))
    (0.0001, 0.001, 0.01)
    """
    return tuple(_rounded(start * grid.factor ** (k - (grid.points - 1) / 2)) for k in range(grid.points))


def _rounded(rate: float) -> float:
    """Three digits: a rate is part of a cell's identity, and its last bits should not be."""
    return float(f"{rate:.2e}")


_GRIDS: dict[str, Callable[[QuestionSpec, ArmTemplate, Sequence[Outcome]], tuple[float, ...]]] = {
    "fixed": _fixed,
    "paper": _paper,
    "adaptive": _adaptive,
}
