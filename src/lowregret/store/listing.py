"""The runs under a folder, one line each."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowregret.errors import LowregretError
from lowregret.store.run import SPEC, RunDirectory

DEPTH = 4
"""Levels of folders that are searched."""


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """One run as a list shows it.

    >>> RunEntry(path=Path("runs/a"), status="unreadable", problem="spec.toml: ...").slots
    ()
    """

    path: Path
    status: Literal["finished", "running", "stopped", "unreadable"]
    """`stopped` can be resumed."""
    problem: str | None = None
    """Why an `unreadable` run can't be read."""
    created: str = ""
    """ISO 8601, UTC."""
    model: str = ""
    data: str = ""
    slots: tuple[str, ...] = ()
    step: int = 0
    """Last step logged."""
    steps: int = 0
    """Steps of the whole run."""
    best_slot: str | None = None
    """Slot of the lowest last NLL, or of the highest last accuracy: on validation, so that the test split stays out of
    the choice."""
    test_nll: float | None = None
    """Last test NLL of that slot, nats per token."""
    test_accuracy: float | None = None
    """Last test accuracy of that slot, of a run of RL."""


def list_runs(root: str | Path) -> tuple[RunEntry, ...]:
    """Every run at or under the folder, oldest first; one that can't be read is listed with its problem."""
    return tuple(
        sorted(
            (_entry(folder) for folder in _run_folders(Path(root))),
            key=lambda e: (e.created, e.path),
        )
    )


def _run_folders(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        here = Path(folder)
        if SPEC in files:
            yield here
            names.clear()
        elif len(here.relative_to(root).parts) >= DEPTH:
            names.clear()
        else:
            names[:] = [name for name in names if not name.startswith(".")]


def _entry(folder: Path) -> RunEntry:
    try:
        return _read_entry(RunDirectory.open(folder))
    except LowregretError as error:
        return RunEntry(path=folder, status="unreadable", problem=str(error))


def _read_entry(run: RunDirectory) -> RunEntry:
    spec = run.spec
    slots = tuple(slot.name for slot in spec.slots)
    steps = [row.step for row in (run.read_metrics() if spec.rl is None else run.read_policy())]
    if spec.rl is None:
        last = {(row.slot, row.split): row.nll for row in run.read_evals()}
    else:
        judged = [row for row in run.read_accuracy() if row.how == spec.rl.judge_by]
        last = {(row.slot, row.split): row.accuracy for row in judged}
    best = _best(run, slots, last)
    reported = None if best is None else last.get((best, "test"))
    return RunEntry(
        path=run.path,
        status="finished" if run.finished else "running" if run.running else "stopped",
        created=run.environment.created,
        model=spec.model.source,
        data=spec.data.source,
        slots=slots,
        step=max(steps, default=0),
        steps=run.plan.steps,
        best_slot=best,
        test_nll=reported if spec.rl is None else None,
        test_accuracy=None if spec.rl is None else reported,
    )


def _best(run: RunDirectory, slots: tuple[str, ...], last: Mapping[tuple[str, str], float]) -> str | None:
    """The slot that the validation split prefers (the test split where nothing else was measured)."""
    ended = (run.summary or {}).get("slots", {})
    gone = {name for name, slot in ended.items() if slot["diverged"] or slot.get("stopped")}
    judged = {slot: last.get((slot, "validation"), last.get((slot, "test"))) for slot in slots if slot not in gone}
    scores = {slot: score for slot, score in judged.items() if score is not None and not math.isnan(score)}
    sign = 1.0 if run.spec.rl is None else -1.0
    return min(scores, key=lambda slot: sign * scores[slot]) if scores else None
