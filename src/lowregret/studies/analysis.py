"""From a study's finished cells to its findings: every claim that its questions can judge, corrected together."""

from __future__ import annotations

from collections.abc import Sequence

from lowregret.specs import QuestionSpec, StudySpec
from lowregret.studies.claims import CLAIMS, CLAIMS_OF, c12
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Outcome
from lowregret.studies.verdicts import holm


def findings_of(spec: StudySpec, outcomes: Sequence[Sequence[Outcome]]) -> tuple[Finding, ...]:
    """The findings of a study, in the order of its questions; Holm's correction is over all of them.

    Args:
        spec: what was asked.
        outcomes: the finished cells of each question.
    """
    found = [
        finding
        for question, own in zip(spec.questions, outcomes, strict=True)
        for finding in _of_question(question, own, _models(question, spec))
    ]
    return holm(found)


def _of_question(question: QuestionSpec, outcomes: Sequence[Outcome], model: str) -> list[Finding]:
    margins = Margins.of(question.margins)
    if question.protocol == "cost":
        return [c12(outcomes, margins, model=model)]
    return [CLAIMS[claim](outcomes, margins, model=model) for claim in CLAIMS_OF.get(question.protocol, ())]


def _models(question: QuestionSpec, spec: StudySpec) -> str:
    return ", ".join(model.source for model in question.models or (spec.model,))
