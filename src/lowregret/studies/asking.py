"""Which cells a question still wants, given what it has: its grid over its arms and seeds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lowregret.errors import SpecError
from lowregret.specs import Arm, QuestionSpec
from lowregret.studies.adaptive import next_cells, paper_grid
from lowregret.studies.arm_builder import ONE_RATE, ArmTemplate
from lowregret.studies.outcome import Outcome

Wanted = tuple[ArmTemplate, float, int]
"""Arm, learning rate, seed."""

Rates = Mapping[Arm, tuple[float, ...]]


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
    kind = "fixed" if question.protocol in ONE_RATE else question.grid.kind
    rates = _GRIDS[kind](question, templates, outcomes)
    if question.protocol == "fidelity":
        rates = _shared(rates)
    return tuple(
        (template, lr, seed) for template in templates for lr in rates.get(template.arm, ()) for seed in question.seeds
    )


def _fixed(question: QuestionSpec, templates: Sequence[ArmTemplate], outcomes: Sequence[Outcome]) -> Rates:
    """The stated rates; a protocol of one rate takes the planner's for the middle arm where none is stated."""
    grid = question.grid
    rates = grid.rates
    if not rates and question.protocol in ONE_RATE:
        adapters = [template for template in templates if template.arm.method == "lora"]
        rates = (adapters[len(adapters) // 2].start,)
    if not rates:
        raise SpecError(f"{question.protocol}: grid.rates is missing; a fixed grid needs its learning rates")
    full = grid.full_rates or rates
    chosen = {t.arm: full if t.arm.method == "full" else rates for t in templates}
    return {arm: tuple(_rounded(rate) for rate in own) for arm, own in chosen.items()}


def _paper(question: QuestionSpec, templates: Sequence[ArmTemplate], outcomes: Sequence[Outcome]) -> Rates:
    grid = question.grid
    return paper_grid({t.arm: t.start for t in templates}, points=grid.points, factor=grid.factor)


def _adaptive(question: QuestionSpec, templates: Sequence[ArmTemplate], outcomes: Sequence[Outcome]) -> Rates:
    """The rates that an arm has, and what its minimum asks for next."""
    rates: dict[Arm, set[float]] = {t.arm: set() for t in templates}
    for outcome in outcomes:
        rates[outcome.arm].add(outcome.lr)
    for arm, step in next_cells({t.arm: t.start for t in templates}, outcomes, question.grid).items():
        rates[arm] |= set(step.rates)
    return {arm: tuple(sorted(own)) for arm, own in rates.items()}


def _shared(rates: Rates) -> Rates:
    """Arms that differ in their variant alone get the rates of all of them: they are compared rate by rate."""
    alike: dict[Arm, set[float]] = {}
    for arm, own in rates.items():
        alike.setdefault(replace(arm, variant=""), set()).update(own)
    return {arm: tuple(sorted(alike[replace(arm, variant="")])) for arm in rates}


def _rounded(rate: float) -> float:
    """Three digits: a rate is part of a cell's identity, and its last bits should not be."""
    return float(f"{rate:.2e}")


_GRIDS: dict[str, Callable[[QuestionSpec, Sequence[ArmTemplate], Sequence[Outcome]], Rates]] = {
    "fixed": _fixed,
    "paper": _paper,
    "adaptive": _adaptive,
}
