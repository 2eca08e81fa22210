"""`cells.parquet` of a study: one row for each finished cell of each question, for other tools to read."""

from __future__ import annotations

import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from lowregret.specs import PlannedCell
from lowregret.store.atomic import write_bytes
from lowregret.store.study import CellRecord, StudyDirectory

CELLS = "cells.parquet"


def write_cells_table(study: StudyDirectory) -> Path:
    """Write the table and return its path.

    Columns: what the cell is (question, protocol, model, data, method, rank, alpha, targets, variant, parameters,
    batch, steps, learning rate, seed), what became of it (whole curves in nats a completion token, final losses,
    whether it diverged or was stopped, tokens, training seconds, and in `fidelity` a list of what was measured of its
    forward fidelity), and its identity and bank. A final loss is null where the cell did not end. Equal studies differ
    in `seconds` only.

    Raises:
        CheckpointError: a record was changed by hand.
    """
    import pyarrow  # pyright: ignore[reportMissingTypeStubs]
    from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]

    arrow, written = cast("tuple[Any, Any]", (pyarrow, parquet))
    questions, model = study.spec.questions, study.spec.model.source
    rows: list[dict[str, Any]] = []
    for planned in study.plan.cells:
        if study.has_record(planned.cell):
            question = questions[planned.question]
            source = study.cell_spec(planned.cell).model.source or model
            named = {"protocol": question.protocol, "model": source, "data": question.data.source}
            rows.append(named | _planned(planned) | _finished(study.read_record(planned.cell)))
    buffer = io.BytesIO()
    written.write_table(arrow.Table.from_pylist(rows), buffer)
    path = study.path / CELLS
    write_bytes(path, buffer.getvalue())
    return path


def _planned(cell: PlannedCell) -> dict[str, Any]:
    arm = cell.arm
    return {
        "question": cell.question,
        "cell": cell.cell,
        "arm": arm.label,
        "method": arm.method,
        "rank": arm.rank,
        "alpha": arm.alpha if arm.method == "lora" else None,
        "targets": "+".join(arm.targets),
        "variant": arm.variant,
        "params": arm.params,
        "width": arm.width,
        "batch_size": arm.batch_size,
        "total_steps": arm.steps,
        "lr": cell.lr,
        "seed": cell.seed,
    }


def _finished(record: CellRecord) -> dict[str, Any]:
    ended = not (record.diverged or record.stopped)
    return {
        "bank": record.bank,
        "steps": list(record.steps),
        "validation": list(record.validation),
        "test": list(record.test),
        "final_validation": record.validation[-1] if ended else None,
        "final_test": record.test[-1] if ended else None,
        "diverged": record.diverged,
        "stopped": record.stopped,
        "tokens": record.tokens,
        "fidelity": [asdict(row) for row in record.fidelity],
        "last_epoch_nats": record.last_epoch_nats if math.isfinite(record.last_epoch_nats) else None,
        "seconds": record.seconds,
    }
