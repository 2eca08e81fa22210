"""What `sft` and `rl` have in common: a run is started or found again, trained on display, drawn and reported.

Guarantees: everything that can be refused is refused before the base's weights are loaded; stdout carries the result
alone, progress goes to stderr; a stopped run says how to go on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from lowregret.cli.flags import Rl, Sft
from lowregret.cli.live import Fan, display
from lowregret.cli.machine import confirm_device, device_facts
from lowregret.cli.prepare import (
    Notify,
    Request,
    notify_on,
    request_of,
    require_same,
    run_name,
    silence_transformers,
    with_reasons,
    with_slots,
)
from lowregret.cli.specs import refuse_changes, task_of
from lowregret.cli.tables import print_plan, print_result
from lowregret.cli.trackers import open_tracker, require_tracker
from lowregret.data.load import TokenizedData
from lowregret.data.problems import ProblemData
from lowregret.errors import CheckpointError
from lowregret.models.locate import ModelFolder
from lowregret.planner.resolve import resolve
from lowregret.planner.shapes import read_shape
from lowregret.specs import RunSpec
from lowregret.store import RunDirectory, collect_environment
from lowregret.training.progress import ProgressListener


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a run is made of, found before it is started.

    >>> sorted(Found.__dataclass_fields__)
    ['data', 'model', 'train']
    """

    model: ModelFolder
    data: TokenizedData | ProblemData
    train: Callable[[RunDirectory, ProgressListener], object]
    """Trains a run on it to its last step. Raises Interrupted where it was asked to stop and has its checkpoint."""


Find = Callable[[RunSpec, Notify], Found]
Slots = Mapping[str, dict[str, Any]]
"""Of a run's summary, by name."""


def carry_out(command: Sft | Rl, find: Find, shortfall: Callable[[Slots], str | None]) -> int:
    """Train to the end; 0 done, 1 the result fell short, 130 stopped with a checkpoint.

    Args:
        find: finds what the spec names.
        shortfall: what `--must-improve` says of a result that it is not content with, in one line.
    """
    console = Console(stderr=True)
    notify = notify_on(console)
    if command.resume is None:
        run, found = _start(command, request_of(command), find, notify, console)
    else:
        run = _reopen(command, command.resume)
        if run.finished:
            notify(f"{run.path} is finished; nothing to do")
            if not run.report_path.is_file():
                with run:
                    run.acquire()
                    _draw(run)
            return _report(command, run, shortfall)
        found = _found_again(run, find, notify)
    with run:
        run.acquire()
        if not _train(run, found, console):
            notify(f"go on with: lowregret {run.spec.task} --resume {run.path}")
            return 130
        _draw(run)
    return _report(command, run, shortfall)


def _start(
    command: Sft | Rl, request: Request, find: Find, notify: Notify, console: Console
) -> tuple[RunDirectory, Found]:
    """A new run directory with its plan, and what the run trains on."""
    machine = device_facts(request.spec.hardware.device)
    require_tracker(request.spec)
    found = find(request.spec, notify)
    facts = found.data.facts
    shape = read_shape(found.model.path)
    spec, reasons = with_slots(request, command, shape, facts, machine)
    machine = confirm_device(spec.hardware.device, machine)
    plan = with_reasons(resolve(spec, shape=shape, facts=facts, hardware=machine), reasons)
    print_plan(plan, shape, console)
    out = command.out or _default_out(command, spec)
    environment = collect_environment(threads=plan.threads, device=plan.device, command=sys.argv)
    run = RunDirectory.create(out, spec=spec, plan=plan, environment=environment)
    run.write_data_report(_data_report(found))
    notify(f"run directory: {run.path}")
    return run, found


def _default_out(command: Sft | Rl, spec: RunSpec) -> Path:
    """A folder that no earlier run has, so that a command can be repeated."""
    return Path("runs") / f"{run_name(command.spec, spec)}-{datetime.now():%Y%m%d-%H%M%S}"


def _reopen(command: Sft | Rl, folder: Path) -> RunDirectory:
    """The run to go on with, if the command asks for nothing else than its spec."""
    run = RunDirectory.open(folder)
    remedy = "a resumed run keeps its spec; leave it out, or start a new run"
    if run.spec_changed:
        raise CheckpointError(f"{folder / 'spec.toml'}: was changed since the run began; undo that, or start a new run")
    if run.spec.task != task_of(command):
        raise CheckpointError(f"{folder}: go on with this run by lowregret {run.spec.task} --resume {folder}")
    if command.out is not None:
        raise CheckpointError(f"--out: a resumed run stays in {folder}; leave it out")
    if command.spec is not None and request_of(replace(command, resume=None)).spec != run.spec:
        raise CheckpointError(f"{command.spec}: is not the spec of {folder}; {remedy}")
    refuse_changes(run.spec, command, where=str(folder), remedy=remedy)
    return run


def _found_again(run: RunDirectory, find: Find, notify: Notify) -> Found:
    """Model and data of a run that goes on, if they are still what they were."""
    found = find(run.spec, notify)
    require_same(run, model=found.model, data=found.data)
    confirm_device(run.spec.hardware.device, device_facts(run.plan.device))
    return found


def _data_report(found: Found) -> dict[str, Any]:
    """What became of the examples, with the hashes that a resume compares."""
    hashes = {"model_hash": found.model.content_hash, "data_hash": found.data.content_hash}
    return {**asdict(found.data.report), **hashes}


def _train(run: RunDirectory, found: Found, console: Console) -> bool:
    """Train to the last step; False where the run was asked to stop and has its checkpoint."""
    from lowregret.training.sft import Interrupted

    silence_transformers()
    with ExitStack() as stack:
        shown = stack.enter_context(display(console))
        listeners: list[ProgressListener] = [shown]
        if run.spec.tracking.tracker is not None:
            listeners.append(stack.enter_context(open_tracker(run.spec, run.path, shown.on_message)))
        listener = Fan(listeners)
        listener.on_plan(run.plan)
        try:
            found.train(run, listener)
        except Interrupted as stop:
            listener.on_message(str(stop))
            return False
    return True


def _draw(run: RunDirectory) -> None:
    from lowregret.report.figures import write_figures
    from lowregret.report.html import write_report
    from lowregret.report.rl_figures import write_rl_figures

    if run.spec.task == "rl":
        write_rl_figures(run)
    else:
        write_figures(run)
    write_report(run)


def _report(command: Sft | Rl, run: RunDirectory, shortfall: Callable[[Slots], str | None]) -> int:
    """Print how the run ended; the exit code."""
    if command.json:
        json.dump(result_of(run), sys.stdout)
        sys.stdout.write("\n")
    else:
        print_result(run, Console())
    slots: Slots = (run.summary or {})["slots"]
    if all(slot["diverged"] for slot in slots.values()):
        print("every slot diverged; lower the learning rates", file=sys.stderr)
        return 1
    missed = shortfall(slots) if command.must_improve else None
    if missed is not None:
        print(missed, file=sys.stderr)
        return 1
    return 0


def result_of(run: RunDirectory) -> dict[str, Any]:
    """A finished run as `--json` prints it: its summary and where everything lies."""
    adapters = {name: str(run.adapter_folder(name)) for name in (run.summary or {})["slots"]}
    return {
        "run": str(run.path),
        **(run.summary or {}),
        "adapters": {name: path for name, path in adapters.items() if Path(path).is_dir()},
        "report": str(run.report_path),
    }
