"""From a study's finished cells to its findings: every claim that its questions can judge, corrected together."""

from __future__ import annotations

from lowregret.specs import QuestionSpec, StudySpec
from lowregret.store.study import StudyDirectory
from lowregret.studies.claims import CLAIMS, CLAIMS_OF, c1, c12
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.reading import outcomes_of, transformed_pairs
from lowregret.studies.verdicts import holm


def findings_of_study(study: StudyDirectory) -> tuple[Finding, ...]:
    """The findings of a study on disk, in the order of its questions; Holm's correction is over all of them.

    Raises:
        CheckpointError: a record was changed by hand.
    """
    spec = study.spec
    found = [
        finding
        for index, question in enumerate(spec.questions)
        for finding in _of_question(study, index, question, _models(question, spec))
    ]
    return holm(found)


def _of_question(study: StudyDirectory, index: int, question: QuestionSpec, model: str) -> list[Finding]:
    margins = Margins.of(question.margins)
    if question.protocol == "invariance":
        return [c1(transformed_pairs(study, index), model=model)]
    outcomes = outcomes_of(study, index)
    if question.protocol == "cost":
        return [c12(outcomes, margins, model=model)]
    return [CLAIMS[claim](outcomes, margins, model=model) for claim in CLAIMS_OF.get(question.protocol, ())]


def _models(question: QuestionSpec, spec: StudySpec) -> str:
    return ", ".join(model.source for model in question.models or (spec.model,))
