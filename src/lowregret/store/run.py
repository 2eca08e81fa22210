"""One run directory: the only reader and writer of its files.

Guarantees: `spec.toml`, `plan.toml` and `environment.json` never change once written; logs only grow (or are cut
back to a checkpoint on resume); whatever is read was written whole. The first write takes a lock that is held until
`close`, so two processes never train in one folder; reading needs no lock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from lowregret.errors import CheckpointError, SpecError
from lowregret.specs import ResolvedPlan, RunSpec
from lowregret.specs.codec import from_dict, read_toml, to_dict, to_toml
from lowregret.store import checkpoints
from lowregret.store.atomic import disk_errors, write_text
from lowregret.store.environment import Environment
from lowregret.store.lock import WriterLock, is_locked
from lowregret.store.logs import Log
from lowregret.store.rows import (
    AccuracyRow,
    DynamicsRow,
    EvalRow,
    FidelityRow,
    MetricRow,
    PolicyRow,
    RolloutRow,
    SampleRow,
)

SPEC, PLAN, ENVIRONMENT = "spec.toml", "plan.toml", "environment.json"
SPEC_DIGEST = "spec.sha256"
SUMMARY, DATA_REPORT, LOCK = "summary.json", "data.json", ".lock"


class RunDirectory:
    """A run on disk. Made by `create` or `open`; a context manager that gives the writer's lock back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = WriterLock(path / LOCK)
        self._metrics = Log(path / "metrics.jsonl", MetricRow)
        self._evals = Log(path / "evals.jsonl", EvalRow)
        self._dynamics = Log(path / "dynamics.jsonl", DynamicsRow)
        self._fidelity = Log(path / "fidelity.jsonl", FidelityRow)
        self._samples = Log(path / "samples.jsonl", SampleRow)
        self._policy = Log(path / "policy.jsonl", PolicyRow)
        self._accuracy = Log(path / "accuracy.jsonl", AccuracyRow)
        self._rollouts = Log(path / "rollouts.jsonl", RolloutRow)

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        spec: RunSpec,
        plan: ResolvedPlan,
        environment: Environment,
    ) -> Self:
        """Start a run in a new or empty folder, and hold its lock."""
        folder = Path(path)
        _refuse_occupied(folder)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            run = cls(folder)
            run._lock.acquire()
            # Whoever held the lock a moment ago may have made a run of the folder meanwhile.
            _refuse_occupied(folder)
        write_text(
            folder / ENVIRONMENT,
            json.dumps(to_dict(environment), indent=1, ensure_ascii=False) + "\n",
        )
        write_text(folder / PLAN, to_toml(plan))
        text = to_toml(spec)
        write_text(folder / SPEC_DIGEST, _digest(text) + "\n")
        # The spec comes last: a folder without it is no run yet, and a creation that was killed can be repeated.
        write_text(folder / SPEC, text)
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing run, for reading or to go on with."""
        folder = Path(path)
        if not (folder / SPEC).is_file():
            raise CheckpointError(f"{folder}: not a run directory (no {SPEC}); `lowregret runs` lists those there are")
        return cls(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the writer's lock back."""
        self._lock.release()

    def acquire(self) -> None:
        """Take the writer's lock now, to fail before any work is done where another process trains here."""
        self._lock.acquire()

    @property
    def running(self) -> bool:
        """Whether a process (this one included) holds the writer's lock."""
        return is_locked(self.path / LOCK)

    @property
    def spec(self) -> RunSpec:
        """The spec that reproduces the run."""
        return read_toml(RunSpec, self.path / SPEC)

    @property
    def spec_changed(self) -> bool:
        """Whether `spec.toml` says something else than when the run was made."""
        digest = self.path / SPEC_DIGEST
        return digest.is_file() and digest.read_text().strip() != _digest(to_toml(self.spec))

    @property
    def plan(self) -> ResolvedPlan:
        """What the planner made of the spec."""
        return read_toml(ResolvedPlan, self.path / PLAN)

    @property
    def environment(self) -> Environment:
        """What the run was started on."""
        record = _read_json(self.path / ENVIRONMENT)
        try:
            return from_dict(Environment, record)
        except SpecError as error:
            raise CheckpointError(f"{self.path / ENVIRONMENT}: {error}") from error

    def append_metrics(self, rows: Iterable[MetricRow]) -> None:
        """Add one step's rows to `metrics.jsonl`."""
        self._lock.acquire()
        self._metrics.append(rows)

    def append_evals(self, rows: Iterable[EvalRow]) -> None:
        """Add rows to `evals.jsonl`."""
        self._lock.acquire()
        self._evals.append(rows)

    def append_dynamics(self, rows: Iterable[DynamicsRow]) -> None:
        """Add rows to `dynamics.jsonl`."""
        self._lock.acquire()
        self._dynamics.append(rows)

    def append_fidelity(self, rows: Iterable[FidelityRow]) -> None:
        """Add rows to `fidelity.jsonl`."""
        self._lock.acquire()
        self._fidelity.append(rows)

    def append_samples(self, rows: Iterable[SampleRow]) -> None:
        """Add rows to `samples.jsonl`."""
        self._lock.acquire()
        self._samples.append(rows)

    def append_policy(self, rows: Iterable[PolicyRow]) -> None:
        """Add one step's rows to `policy.jsonl`."""
        self._lock.acquire()
        self._policy.append(rows)

    def append_accuracy(self, rows: Iterable[AccuracyRow]) -> None:
        """Add rows to `accuracy.jsonl`."""
        self._lock.acquire()
        self._accuracy.append(rows)

    def append_rollouts(self, rows: Iterable[RolloutRow]) -> None:
        """Add rows to `rollouts.jsonl`."""
        self._lock.acquire()
        self._rollouts.append(rows)

    def read_metrics(self) -> tuple[MetricRow, ...]:
        """All training rows so far."""
        return self._metrics.read()

    def read_evals(self) -> tuple[EvalRow, ...]:
        """All held-out rows so far."""
        return self._evals.read()

    def read_dynamics(self) -> tuple[DynamicsRow, ...]:
        """All norms of adapters so far; none where the run does not log them."""
        return self._dynamics.read()

    def read_fidelity(self) -> tuple[FidelityRow, ...]:
        """All forward fidelities so far; none where the run does not measure them."""
        return self._fidelity.read()

    def read_samples(self) -> tuple[SampleRow, ...]:
        """All sample answers so far."""
        return self._samples.read()

    def read_policy(self) -> tuple[PolicyRow, ...]:
        """All steps of RL so far."""
        return self._policy.read()

    def read_accuracy(self) -> tuple[AccuracyRow, ...]:
        """All held-out accuracies so far."""
        return self._accuracy.read()

    def read_rollouts(self) -> tuple[RolloutRow, ...]:
        """All completions that were kept for the reader."""
        return self._rollouts.read()

    def truncate_logs(self, step: int) -> None:
        """Drop what was logged after a checkpoint's step; a resumed run logs it again. -1 drops everything.

        Answers given after training go too: a run that goes on has not come to them.
        """
        self._lock.acquire()
        self._metrics.rewrite(row for row in self._metrics.read() if row.step <= step)
        self._evals.rewrite(row for row in self._evals.read() if row.step <= step)
        self._dynamics.rewrite(row for row in self._dynamics.read() if row.step <= step)
        self._fidelity.rewrite(row for row in self._fidelity.read() if row.step <= step)
        self._samples.rewrite(row for row in self._samples.read() if row.when == "before" and step >= 0)
        self._policy.rewrite(row for row in self._policy.read() if row.step <= step)
        self._accuracy.rewrite(row for row in self._accuracy.read() if row.step <= step)
        self._rollouts.rewrite(row for row in self._rollouts.read() if row.step <= step)

    @contextmanager
    def writing_checkpoint(self, step: int, *, keep: int = 2) -> Generator[Path, None, None]:
        """A temporary folder for a checkpoint's files; it becomes `checkpoints/step-...` when the block ends well.

        The logs reach the disk first, so that after a power cut they hold every step up to the checkpoint.
        """
        self._lock.acquire()
        logs = (self._metrics, self._evals, self._dynamics, self._fidelity, self._samples)
        for log in (*logs, self._policy, self._accuracy, self._rollouts):
            log.sync()
        with checkpoints.writing_checkpoint(self.path / "checkpoints", step, keep=keep) as folder:
            yield folder

    def latest_checkpoint(self, on_skip: Callable[[str], None]) -> tuple[int, Path] | None:
        """Step and folder of the newest whole checkpoint; `on_skip` hears of each damaged one passed over."""
        return checkpoints.latest_checkpoint(self.path / "checkpoints", on_skip)

    def drop_checkpoints(self) -> None:
        """Remove every checkpoint of a finished run: a full fine-tuning's are three times the model each."""
        self._lock.acquire()
        assert self.finished
        checkpoints.drop_checkpoints(self.path / "checkpoints")

    def mark_finished(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`: the run is complete."""
        self._lock.acquire()
        write_text(
            self.path / SUMMARY,
            json.dumps(dict(summary), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        )

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return (self.path / SUMMARY).is_file()

    @property
    def summary(self) -> dict[str, Any] | None:
        """What `mark_finished` was given, or None while the run is not complete."""
        return _read_json(self.path / SUMMARY) if self.finished else None

    def write_data_report(self, report: Mapping[str, Any]) -> None:
        """Write `data.json`: what became of the examples (read, dropped, truncated, split), by name."""
        self._lock.acquire()
        write_text(
            self.path / DATA_REPORT,
            json.dumps(dict(report), indent=1, ensure_ascii=False) + "\n",
        )

    @property
    def data_report(self) -> dict[str, Any] | None:
        """What `write_data_report` was given, or None."""
        return _read_json(self.path / DATA_REPORT) if (self.path / DATA_REPORT).is_file() else None

    def adapter_folder(self, slot: str) -> Path:
        """Where a slot's adapter lies in PEFT layout."""
        return self.path / "adapters" / slot

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.path / "figures"

    @property
    def report_path(self) -> Path:
        """The interactive report."""
        return self.path / "report.html"


def _refuse_occupied(folder: Path) -> None:
    """Refuse a folder that holds anything but what a killed creation leaves behind."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; choose a folder with --out")
    if (folder / SPEC).exists():
        raise CheckpointError(
            f"{folder}: holds another run; choose a new folder with --out, or go on with that run by --resume {folder}"
        )
    names = sorted(path.name for path in folder.iterdir())
    own = {ENVIRONMENT, PLAN, SPEC_DIGEST, LOCK} if LOCK in names else set[str]()
    others = [name for name in names if name not in own and not _is_temporary(name)]
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise CheckpointError(f"{folder}: holds other files ({shown}); choose an empty folder with --out")


def _is_temporary(name: str) -> bool:
    return any(name.startswith(f".{own}.tmp-") for own in (SPEC, SPEC_DIGEST, PLAN, ENVIRONMENT))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read ({error}); restore it or start a new run") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: not a JSON object; restore it or start a new run")
    return cast("dict[str, Any]", record)
