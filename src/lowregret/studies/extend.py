"""Whether a study may grow into another: more seeds, rates, questions; what it has asked stays asked. Pure."""

from __future__ import annotations

from dataclasses import replace

from lowregret.errors import SpecError
from lowregret.specs import QuestionSpec, StudySpec


def with_seeds(spec: StudySpec, number: int) -> StudySpec:
    """The study with seeds 0 to number - 1 in every question.

    Raises:
        SpecError: a question has a seed beyond these.
    """
    wanted = tuple(range(number))
    for question in spec.questions:
        if not set(question.seeds) <= set(wanted):
            raise SpecError(
                f"--seeds: {number} would drop seeds of {question.protocol}; give {max(question.seeds) + 1}"
            )
    return replace(spec, questions=tuple(replace(question, seeds=wanted) for question in spec.questions))


def refuse_other(old: StudySpec, new: StudySpec, *, where: str) -> None:
    """Refuse a spec that asks for something else than the old one and more.

    Args:
        old: of the study's folder.
        new: to go on with.
        where: names the new spec in the message.

    Raises:
        SpecError: it names the first difference and the remedy.
    """
    for field in ("name", "model", "hardware"):
        if getattr(old, field) != getattr(new, field):
            raise SpecError(_other(f"{where}: {field}"))
    if len(new.questions) < len(old.questions):
        raise SpecError(_other(f"{where}: questions"))
    for place, (before, after) in enumerate(zip(old.questions, new.questions, strict=False)):
        if _narrowed(after, before) != before:
            raise SpecError(_other(f"{where}: questions[{place}] ({before.protocol})"))


def _narrowed(question: QuestionSpec, to: QuestionSpec) -> QuestionSpec:
    """The question without the seeds and rates that it has beyond another's."""
    grid = replace(
        question.grid,
        rates=tuple(rate for rate in question.grid.rates if rate in to.grid.rates),
        full_rates=tuple(rate for rate in question.grid.full_rates if rate in to.grid.full_rates),
    )
    return replace(question, grid=grid, seeds=tuple(seed for seed in question.seeds if seed in to.seeds))


def _other(what: str) -> str:
    return f"{what}: is not the study's own; only seeds, rates and questions may be added. Give a new folder with --out"
