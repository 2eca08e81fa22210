"""From a study's folder to what estimators see."""

from __future__ import annotations

from lowregret.store.study import StudyDirectory
from lowregret.studies.outcome import Outcome


def outcomes_of(study: StudyDirectory, question: int) -> tuple[Outcome, ...]:
    """The finished cells of a question, in the order in which they were asked for.

    Raises:
        CheckpointError: a record was changed by hand.
    """
    outcomes: list[Outcome] = []
    for planned in study.plan.cells:
        if planned.question != question or not study.has_record(planned.cell):
            continue
        record = study.read_record(planned.cell)
        outcomes.append(
            Outcome(
                cell=planned.cell,
                arm=planned.arm,
                lr=planned.lr,
                seed=planned.seed,
                steps=record.steps,
                validation=record.validation,
                test=record.test,
                diverged=record.diverged,
            )
        )
    return tuple(outcomes)
