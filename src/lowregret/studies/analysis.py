"""From a study's finished cells to its findings: every claim that its questions can judge, corrected together."""

from __future__ import annotations

from collections.abc import Sequence

from lowregret.specs import QuestionSpec, StudySpec
from lowregret.store.study import StudyDirectory
from lowregret.studies.claims import CLAIMS, CLAIMS_OF, c1, c12
from lowregret.studies.claims.c9_rl_parity import with_control
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.reading import outcomes_of, transformed_pairs
from lowregret.studies.verdicts import holm


def findings_of_study(study: StudyDirectory) -> tuple[Finding, ...]:
    """The findings of a study on disk, in the order of its questions; Holm's correction is over all of them.

    C9 is `supported` only beside its negative control: a `certify` question of the study at the same rank and base.

    Raises:
        CheckpointError: a record was changed by hand.
    """
    spec = study.spec
    asked: list[QuestionSpec] = []
    found: list[Finding] = []
    for index, question in enumerate(spec.questions):
        own = _of_question(study, index, question, _models(question, spec))
        asked += [question] * len(own)
        found += own
    corrected = holm(found)
    return tuple(
        with_control(finding, _controls(question, asked, corrected)) if finding.claim == "C9" else finding
        for question, finding in zip(asked, corrected, strict=True)
    )


def _controls(question: QuestionSpec, asked: Sequence[QuestionSpec], found: Sequence[Finding]) -> list[Finding]:
    """The findings of `certify` questions at the smallest rank of an RL question, on its bases."""
    return [
        finding
        for own, finding in zip(asked, found, strict=True)
        if own.protocol == "certify" and own.ranks[0] == min(question.ranks) and own.models == question.models
    ]


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
