"""One bank of a study: made as a run directory, trained or resumed, and its cells' series taken out of its logs.

A bank is an ordinary run with one slot a cell, so that a kill costs at most the steps since its last checkpoint, and a
resumed bank gives bitwise the same series.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lowregret.data.load import TokenizedData, load_data
from lowregret.data.tokenizer import TextTokenizer
from lowregret.models.locate import ModelFolder, locate_model
from lowregret.planner.resolve import resolve
from lowregret.planner.shapes import read_shape
from lowregret.specs import DataSpec, DeviceFacts, ModelSpec, PlannedBank, RunSpec
from lowregret.specs.shape import ModelShape
from lowregret.store import RunDirectory
from lowregret.store.environment import Environment
from lowregret.store.rows import DynamicsRow
from lowregret.store.study import CellRecord, Dynamics, StudyDirectory


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What a cell is trained from: its base and its data.

    >>> sorted(Materials.__dataclass_fields__)
    ['data', 'folder', 'shape']
    """

    folder: ModelFolder
    shape: ModelShape
    data: TokenizedData


def materials(model: ModelSpec, data: DataSpec) -> Materials:
    """Find the base and tokenise the data, or take both from the caches.

    Raises:
        ModelError, DataError, SpecError: as `locate_model`, `load_data`, `read_shape`.
    """
    folder = locate_model(model)
    return Materials(
        folder=folder,
        shape=read_shape(folder.path),
        data=load_data(data, TextTokenizer.from_folder(folder.path)),
    )


def make_bank(
    study: StudyDirectory, bank: PlannedBank, found: Materials, *, machine: DeviceFacts, environment: Environment
) -> None:
    """The run directory of a planned bank, if it is not there yet.

    Raises:
        CapacityError: it does not fit; the message names the nearest that does.
    """
    folder = study.bank_folder(bank.bank)
    if (folder / "spec.toml").is_file():
        return
    spec = bank_spec([(cell, study.cell_spec(cell)) for cell in bank.cells])
    plan = resolve(spec, shape=found.shape, facts=found.data.facts, hardware=machine)
    with RunDirectory.create(folder, spec=spec, plan=plan, environment=environment) as run:
        run.write_data_report(asdict(found.data.report))


def bank_spec(cells: Sequence[tuple[str, RunSpec]]) -> RunSpec:
    """One run that holds every cell's slot under the cell's identity."""
    slots = tuple(replace(spec.slots[0], name=cell) for cell, spec in cells)
    return replace(cells[0][1], slots=slots)


def run_bank(folder: Path) -> None:
    """Train a bank to its end, from its last checkpoint where it has one; a finished one stays as it is.

    Raises:
        Interrupted: SIGINT or SIGTERM came; its state is in a checkpoint.
    """
    run = RunDirectory.open(folder)
    if run.finished:
        return
    from transformers.utils import logging

    from lowregret.training.progress import Silent
    from lowregret.training.sft import train

    logging.disable_progress_bar()

    found = materials(run.spec.model, run.spec.data)
    with run:
        run.acquire()
        train(run, model=found.folder, data=found.data, listener=Silent())


def bank_progress(folder: Path, steps: int) -> float:
    """Share of a bank's steps that is done, 0 to 1, from the end of its log; nothing else is read."""
    log = folder / "metrics.jsonl"
    if not log.is_file():
        return 0.0
    if (folder / "summary.json").is_file():
        return 1.0
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = file.read().split(b"\n")
    # The last piece is what follows the last newline; the one before is the last whole line.
    return json.loads(lines[-2])["step"] / steps if len(lines) > 1 else 0.0


TAIL_BYTES = 4096
"""Of a log, which hold its last line."""


def harvest(study: StudyDirectory, bank: PlannedBank) -> None:
    """Write the record of every cell of a finished bank, which then needs its checkpoints no more.

    Those of 42 cells on SmolLM2-135M, 24 of them full fine-tuning, took 31 GB.
    """
    run = RunDirectory.open(study.bank_folder(bank.bank))
    assert run.summary is not None
    series: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in run.read_evals():
        series[row.slot][row.split][row.step] = row.nll
    tokens: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    metrics = run.read_metrics()
    last_epoch = math.ceil(run.plan.facts.num_examples / run.spec.train.batch_size)
    nats: dict[str, float] = defaultdict(float)
    sharing: dict[int, int] = defaultdict(int)
    for row in metrics:
        sharing[row.step] += 1
    for row in metrics:
        tokens[row.slot] += row.tokens
        seconds[row.slot] += (row.seconds or 0.0) / sharing[row.step]
        if row.step > run.plan.steps - last_epoch:
            nats[row.slot] += row.loss * (row.completion_tokens or 0)
    dynamics: dict[str, list[DynamicsRow]] = defaultdict(list)
    for row in run.read_dynamics():
        dynamics[row.slot].append(row)
    for cell in bank.cells:
        validation, test = series[cell]["validation"], series[cell]["test"]
        steps = tuple(sorted(validation.keys() & test.keys()))
        study.write_record(
            CellRecord(
                cell=cell,
                bank=bank.bank,
                steps=steps,
                validation=tuple(validation[step] for step in steps),
                test=tuple(test[step] for step in steps),
                diverged=bool(run.summary["slots"][cell]["diverged"]),
                tokens=tokens[cell],
                last_epoch_nats=nats[cell],
                seconds=seconds[cell],
                stopped=bool(run.summary["slots"][cell].get("stopped", False)),
                dynamics=_dynamics(dynamics[cell]),
            )
        )
    with run:
        run.drop_checkpoints()


def _dynamics(rows: Sequence[DynamicsRow]) -> Dynamics | None:
    if not rows:
        return None
    first = rows[0]
    assert first.kernel_alignment is not None
    assert first.kernel_error is not None
    return Dynamics(
        norm_a=tuple(row.norm_a for row in rows),
        norm_b=tuple(row.norm_b for row in rows),
        kernel_alignment=first.kernel_alignment,
        kernel_error=first.kernel_error,
    )
