"""One study directory: its spec, its plan, its cells and what was found.

Guarantees: a cell's record is written once, whole, with a checksum, and never changed; a record that was edited by hand
is refused by name. The plan only grows. Banks are run directories of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from lowregret.errors import CheckpointError, SpecError
from lowregret.specs import RunSpec, StudyPlan, StudySpec
from lowregret.specs.codec import from_dict, read_toml, to_dict, to_toml
from lowregret.store.atomic import disk_errors, write_text
from lowregret.store.environment import Environment
from lowregret.store.lock import WriterLock, is_locked

STUDY, PLAN, ENVIRONMENT, LOCK = "study.toml", "plan.toml", "environment.json", ".lock"
CELL_SPEC, RECORD, FINDINGS = "spec.toml", "record.json", "findings.json"


@dataclass(frozen=True, kw_only=True)
class Dynamics:
    """How a cell's adapter moved (`store.rows.DynamicsRow`), as series over the record's steps.

    >>> Dynamics(norm_a=(0.8, 0.8), norm_b=(0.0, 0.3), kernel_alignment=0.99, kernel_error=0.1).norm_b[-1]
    0.3
    """

    norm_a: tuple[float, ...]
    norm_b: tuple[float, ...]
    kernel_alignment: float
    kernel_error: float


@dataclass(frozen=True, kw_only=True)
class ForwardFidelity:
    """How much of a cell's update one bf16 arithmetic lets act (`store.rows.FidelityRow`).

    >>> ForwardFidelity(step=1, arithmetic="add", fidelity=0.44, low=0.4, high=0.48, fp32_drop=0.1, drop=0.044,
    ...     sequences=64).fidelity
    0.44
    """

    step: int
    arithmetic: str
    fidelity: float
    low: float
    high: float
    fp32_drop: float
    drop: float
    sequences: int
    moved: float | None = None


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """What became of one cell.

    >>> CellRecord(cell="a1", bank="b1", steps=(0, 1), validation=(2.0, 1.9), test=(2.0, 1.95), diverged=False,
    ...     tokens=640, last_epoch_nats=90.0, seconds=1.5).untimed().seconds
    0.0
    """

    cell: str
    bank: str
    """The bank that it was trained in."""
    steps: tuple[int, ...]
    """Optimizer steps at which the held-out losses were measured."""
    validation: tuple[float, ...]
    """Nats a completion token, one a step of `steps`."""
    test: tuple[float, ...]
    diverged: bool
    tokens: int
    """Trained on, prompts included."""
    last_epoch_nats: float
    """Training loss of the last pass over the data, summed over its completion tokens; each before its update."""
    seconds: float
    """The cell's share of its bank's steps, evaluation left out. Timing: two equal studies differ in it."""
    stopped: bool = False
    """Another learning rate dominated it, so that it left early; its series end there."""
    dynamics: Dynamics | None = None
    """Where the question asked for it."""
    fidelity: tuple[ForwardFidelity, ...] = ()
    """Likewise, by step and arithmetic."""

    def untimed(self) -> CellRecord:
        """The record without its timing, for comparing two studies."""
        return replace(self, seconds=0.0)


class StudyDirectory:
    """A study on disk. Made by `create` or `open`; a context manager that gives the writer's lock back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = WriterLock(path / LOCK)
        self._plan: tuple[tuple[int, int], StudyPlan] | None = None

    @classmethod
    def create(cls, path: str | Path, *, spec: StudySpec, environment: Environment) -> Self:
        """Start a study in a new or empty folder, and hold its lock.

        Raises:
            CheckpointError: the folder holds something else.
        """
        folder = Path(path)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # The spec comes last: a folder without it, with its lock, is a creation that was cut short.
            names = {child.name for child in folder.iterdir() if not child.name.startswith(".")}
            if names and (names - {ENVIRONMENT, PLAN} or not (folder / LOCK).exists()):
                raise CheckpointError(f"{folder}: is not empty; give a new folder, or go on with --resume {folder}")
            study = cls(folder)
            study._lock.acquire()
        write_text(folder / ENVIRONMENT, json.dumps(to_dict(environment), indent=1, ensure_ascii=False) + "\n")
        write_text(folder / PLAN, to_toml(StudyPlan()))
        write_text(folder / STUDY, to_toml(spec))
        return study

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing study, for reading or to go on with.

        Raises:
            CheckpointError: there is none.
        """
        folder = Path(path)
        if not (folder / STUDY).is_file():
            raise CheckpointError(f"{folder}: not a study directory (no {STUDY}); give the folder that --out named")
        return cls(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def acquire(self) -> None:
        """Take the writer's lock now, to fail before any work is done where another process runs this study."""
        self._lock.acquire()

    @property
    def running(self) -> bool:
        """Whether a process (this one included) holds the writer's lock."""
        return is_locked(self.path / LOCK)

    @property
    def spec(self) -> StudySpec:
        """What was asked."""
        return read_toml(StudySpec, self.path / STUDY)

    @property
    def environment(self) -> dict[str, Any]:
        """What the study was started on, as written."""
        return json.loads((self.path / ENVIRONMENT).read_text())

    @property
    def plan(self) -> StudyPlan:
        """What was planned so far; read again only when the file has changed, since it is asked for at every bank."""
        state = (self.path / PLAN).stat()
        key = (state.st_mtime_ns, state.st_size)
        if self._plan is None or self._plan[0] != key:
            self._plan = (key, read_toml(StudyPlan, self.path / PLAN))
        return self._plan[1]

    def write_plan(self, plan: StudyPlan) -> None:
        """Replace the plan by one that has grown."""
        self._lock.acquire()
        write_text(self.path / PLAN, to_toml(plan))

    def extend_spec(self, spec: StudySpec) -> None:
        """Replace the spec by one that asks for more; cells that it shares with the old one stay as they are."""
        self._lock.acquire()
        write_text(self.path / STUDY, to_toml(spec))

    def bank_folder(self, bank: str) -> Path:
        """Where a bank's run directory lies or will lie."""
        return self.path / "banks" / bank

    def write_cell_spec(self, cell: str, spec: RunSpec) -> None:
        """Say what a planned cell is, before it is trained."""
        folder = self._cell(cell)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / CELL_SPEC).is_file():
            write_text(folder / CELL_SPEC, to_toml(spec))

    def cell_spec(self, cell: str) -> RunSpec:
        """The run of one slot that a cell is."""
        return read_toml(RunSpec, self._cell(cell) / CELL_SPEC)

    def write_record(self, record: CellRecord) -> None:
        """Store a finished cell; a cell that is finished already stays as it is."""
        self._lock.acquire()
        if self.has_record(record.cell):
            return
        fields = _plain(record)
        document = {"record": fields, "sha256": _checksum(fields)}
        write_text(self._cell(record.cell) / RECORD, json.dumps(document, indent=1) + "\n")

    def has_record(self, cell: str) -> bool:
        """Whether a cell is finished."""
        return (self._cell(cell) / RECORD).is_file()

    def read_record(self, cell: str) -> CellRecord:
        """A finished cell.

        Raises:
            CheckpointError: the file was changed since it was written, or is no record.
        """
        file = self._cell(cell) / RECORD
        remedy = f"remove {file.parent} and resume, and the cell is trained again"
        try:
            document = json.loads(file.read_text())
            fields, stated = document["record"], document["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file}: is no cell's record ({error}); {remedy}") from error
        if _checksum(fields) != stated:
            raise CheckpointError(f"{file}: was changed since it was written (its checksum differs); {remedy}")
        try:
            return from_dict(CellRecord, _floats(fields))
        except SpecError as error:
            raise CheckpointError(f"{file}: {error}; {remedy}") from error

    def adapter_file(self, cell: str) -> Path:
        """The trained adapter of a finished cell, safetensors in PEFT's layout; a cell that diverged has none."""
        return self.bank_folder(self.read_record(cell).bank) / "adapters" / cell / "adapter_model.safetensors"

    def write_findings(self, findings: Sequence[dict[str, Any]]) -> None:
        """Store what was found, as a list."""
        self._lock.acquire()
        text = json.dumps(list(findings), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(self.path / FINDINGS, text + "\n")

    def read_findings(self) -> list[dict[str, Any]]:
        """What was found so far; empty before the first analysis."""
        file = self.path / FINDINGS
        return json.loads(file.read_text()) if file.is_file() else []

    @property
    def report_path(self) -> Path:
        """Where the report lies or will lie."""
        return self.path / "report.html"

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.path / "figures"

    def _cell(self, cell: str) -> Path:
        return self.path / "cells" / cell


def _plain(record: CellRecord) -> dict[str, Any]:
    """JSON has no infinities: a diverged cell's losses stand as strings that `float` reads."""
    fields = {name: value for name, value in asdict(record).items() if value is not None}
    if rows := fields.pop("fidelity"):
        fields["fidelity"] = [{name: value for name, value in row.items() if value is not None} for row in rows]
    for name in ("validation", "test"):
        fields[name] = [value if math.isfinite(value) else str(value) for value in fields[name]]
    if not math.isfinite(record.last_epoch_nats):
        fields["last_epoch_nats"] = str(record.last_epoch_nats)
    return fields | {"steps": list(record.steps)}


def _floats(fields: dict[str, Any]) -> dict[str, Any]:
    plain = {name: [float(value) for value in fields[name]] for name in ("validation", "test")}
    return fields | plain | {"last_epoch_nats": float(fields["last_epoch_nats"])}


def _checksum(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
