"""From a study's folder to what estimators see."""

from __future__ import annotations

import math

from lowregret.specs import Arm
from lowregret.store.study import CellRecord, StudyDirectory
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
                seconds=record.seconds or None,
                multiply_adds=planned.arm.multiply_adds * planned.arm.steps or None,
                offered_bits=planned.arm.offered_bits or None,
                stored_bits=_stored_bits(planned.arm, record),
            )
        )
    return tuple(outcomes)


def _stored_bits(arm: Arm, record: CellRecord) -> float | None:
    """N H - NLL, summed over the training data (science.md, C6b); a cell that diverged holds nothing.

    The NLL is that of the last epoch, each batch before its update, which is no less than the NLL at the end: the bits
    are a lower bound.
    """
    if not arm.offered_bits:
        return None
    if record.diverged or not math.isfinite(record.last_epoch_nats):
        return 0.0
    return max(0.0, arm.offered_bits - record.last_epoch_nats / math.log(2))
