"""How many bits the training data of a question holds at most: the summed log loss of a first pass over it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowregret.store import RunDirectory
from lowregret.store.study import StudyDirectory
from lowregret.studies.outcome import Outcome


def first_pass_bits(study: StudyDirectory, outcomes: Sequence[Outcome]) -> float | None:
    """Least training loss over the finished cells of a first pass, each batch before its update, summed in bits.

    That is the length of a code for the data, an upper bound of what it holds (science.md section 2); it counts what no
    model could learn as well. Records keep the last pass: it is the first where no example is seen twice.

    Returns:
        None where no cell was finished, where examples were seen again, or where the banks were removed.
    """
    finished = [outcome for outcome in outcomes if not outcome.diverged]
    if not finished:
        return None
    records = [study.read_record(outcome.cell) for outcome in finished]
    bank = study.bank_folder(records[0].bank)
    if not bank.is_dir():
        return None
    examples = RunDirectory.open(bank).plan.facts.num_examples
    if any(outcome.arm.steps * outcome.arm.batch_size > examples for outcome in finished):
        return None
    least = min(record.last_epoch_nats for record in records)
    return least / math.log(2) if math.isfinite(least) else None
