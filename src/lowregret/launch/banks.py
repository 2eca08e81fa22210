"""One bank of a study: made as a run directory, trained or resumed, and its cells' series taken out of its logs.

A bank is an ordinary run with one slot a cell, so that a kill costs at most the steps since its last checkpoint, and a
resumed bank gives bitwise the same series.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lowregret.data.load import TokenizedData, load_data
from lowregret.data.problems import ProblemData, load_problems
from lowregret.data.tokenizer import TextTokenizer
from lowregret.models.locate import ModelFolder, locate_model
from lowregret.planner.resolve import resolve
from lowregret.planner.shapes import read_shape
from lowregret.rewards.scorer import Scorer
from lowregret.specs import DataSpec, DeviceFacts, ModelSpec, PlannedBank, RLSpec, RunSpec
from lowregret.specs.shape import ModelShape
from lowregret.store import RunDirectory
from lowregret.store.environment import Environment
from lowregret.store.rows import DynamicsRow, FidelityRow
from lowregret.store.study import CellRecord, Dynamics, ForwardFidelity, StudyDirectory


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What a cell is trained from: its base and its data.

    >>> sorted(Materials.__dataclass_fields__)
    ['data', 'folder', 'shape']
    """

    folder: ModelFolder
    shape: ModelShape
    data: TokenizedData | ProblemData
    """Examples, or for RL problems."""


def materials(model: ModelSpec, data: DataSpec, rl: RLSpec | None = None) -> Materials:
    """Find the base and tokenise the data, or take both from the caches.

    Raises:
        ModelError, DataError, SpecError: as `locate_model`, `load_data`, `load_problems`, `Scorer`, `read_shape`.
    """
    folder = locate_model(model)
    tokenizer = TextTokenizer.from_folder(folder.path)
    if rl is None:
        found = load_data(data, tokenizer)
    else:
        with Scorer(rl.rewards) as scorer:
            found = load_problems(data, rl, tokenizer, usable=lambda problem: scorer.usable([problem])[0])
    return Materials(folder=folder, shape=read_shape(folder.path), data=found)


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

    What it leaves are logs and adapters, not the state after its last step: nobody asks for a cell's moments.

    Raises:
        Interrupted: SIGINT or SIGTERM came; its state is in a checkpoint.
    """
    run = RunDirectory.open(folder)
    if run.finished:
        return
    from transformers.utils import logging

    from lowregret.training.progress import Silent
    from lowregret.training.rl import train_rl
    from lowregret.training.sft import train

    logging.disable_progress_bar()

    rl = run.spec.rl
    found = materials(run.spec.model, run.spec.data, rl)
    with run:
        run.acquire()
        if isinstance(found.data, TokenizedData):
            train(run, model=found.folder, data=found.data, listener=Silent(), keep_last=False)
        else:
            assert rl is not None
            with Scorer(rl.rewards) as scorer:
                train_rl(run, model=found.folder, data=found.data, scorer=scorer, listener=Silent(), keep_last=False)


def bank_progress(folder: Path, steps: int) -> float:
    """Share of a bank's steps that is done, 0 to 1, from the end of its log; nothing else is read."""
    logs = [log for name in ("metrics.jsonl", "policy.jsonl") if (log := folder / name).is_file()]
    if not logs:
        return 0.0
    (log,) = logs
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
    records = _rl_records(run, bank) if run.spec.task == "rl" else _records(run, bank)
    for record in records:
        study.write_record(record)
    with run:
        run.drop_checkpoints()


def _records(run: RunDirectory, bank: PlannedBank) -> list[CellRecord]:
    """Held-out losses of supervised cells."""
    assert run.summary is not None
    records: list[CellRecord] = []
    series: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in run.read_evals():
        series[row.slot][row.split][row.step] = row.nll
    tokens: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    metrics = run.read_metrics()
    plan = run.plan  # read once: it is parsed at every access, and these loops are over every step of every slot
    last_epoch = math.ceil(plan.facts.num_examples / plan.spec.train.batch_size)
    nats: dict[str, float] = defaultdict(float)
    sharing: dict[int, int] = defaultdict(int)
    for row in metrics:
        sharing[row.step] += 1
    for row in metrics:
        tokens[row.slot] += row.tokens
        seconds[row.slot] += (row.seconds or 0.0) / sharing[row.step]
        if row.step > plan.steps - last_epoch:
            nats[row.slot] += row.loss * (row.completion_tokens or 0)
    dynamics: dict[str, list[DynamicsRow]] = defaultdict(list)
    for row in run.read_dynamics():
        dynamics[row.slot].append(row)
    fidelity = run.read_fidelity()
    for cell in bank.cells:
        validation, test = series[cell]["validation"], series[cell]["test"]
        steps = tuple(sorted(validation.keys() & test.keys()))
        records.append(
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
                fidelity=_fidelity([row for row in fidelity if row.slot == cell]),
            )
        )
    return records


def _rl_records(run: RunDirectory, bank: PlannedBank) -> list[CellRecord]:
    """Held-out error rates of RL cells, 1 - accuracy: the lower the better, as a loss."""
    assert run.summary is not None
    assert run.spec.rl is not None
    judge_by = run.spec.rl.judge_by
    errors: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in run.read_accuracy():
        if row.how == judge_by:
            errors[row.slot][row.split][row.step] = 1.0 - row.accuracy
    rows = run.read_policy()
    sharing = Counter(row.step for row in rows)
    records: list[CellRecord] = []
    for cell in bank.cells:
        validation, test = errors[cell]["validation"], errors[cell]["test"]
        steps = tuple(sorted(validation.keys() & test.keys()))
        own = [row for row in rows if row.slot == cell]
        records.append(
            CellRecord(
                cell=cell,
                bank=bank.bank,
                steps=steps,
                validation=tuple(validation[step] for step in steps),
                test=tuple(test[step] for step in steps),
                diverged=bool(run.summary["slots"][cell]["diverged"]),
                tokens=sum(row.tokens for row in own),
                last_epoch_nats=0.0,
                seconds=sum((row.seconds or 0.0) / sharing[row.step] for row in own),
            )
        )
    return records


def _fidelity(rows: Sequence[FidelityRow]) -> tuple[ForwardFidelity, ...]:
    """A ratio that is no number says nothing: the update did not move the held-out loss, or made it infinite."""
    return tuple(
        ForwardFidelity(
            step=row.step,
            arithmetic=row.arithmetic,
            fidelity=row.fidelity,
            low=row.low,
            high=row.high,
            fp32_drop=row.fp32_drop,
            drop=row.drop,
            sequences=row.sequences,
            moved=row.moved,
        )
        for row in rows
        if all(map(math.isfinite, (row.fidelity, row.low, row.high)))
    )


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
