"""`lowregret sft`: parse, prepare, plan, train, report. The training itself is `training.sft.train`.

Guarantees: everything that can be refused is refused before the base's weights are loaded; stdout carries the result
alone, progress goes to stderr; a stopped run says how to go on.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from lowregret.cli.bases import ensure_bases
from lowregret.cli.flags import Sft
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
    tokenize,
    with_reasons,
    with_slots,
)
from lowregret.cli.specs import refuse_changes
from lowregret.cli.tables import print_plan, print_result
from lowregret.cli.trackers import open_tracker, require_tracker
from lowregret.data.examples import ExampleStore
from lowregret.data.load import TokenizedData, load_eval_data
from lowregret.data.tokenizer import TextTokenizer
from lowregret.errors import CheckpointError
from lowregret.models.locate import ModelFolder, locate_model
from lowregret.planner.resolve import resolve
from lowregret.planner.shapes import read_shape
from lowregret.specs import RunSpec
from lowregret.store import RunDirectory, collect_environment
from lowregret.training.progress import ProgressListener

MIN_DROP = 0.01
"""Nats by which `--must-improve` wants the test NLL to fall: far above what rounding or a lucky batch moves."""


def sft(command: Sft) -> int:
    """Train; 0 done, 1 the result fell short, 130 stopped with a checkpoint."""
    console = Console(stderr=True)
    notify = notify_on(console)
    if command.resume is None:
        run, materials = _start(command, request_of(command), notify, console)
    else:
        run = _reopen(command, command.resume)
        if run.finished:
            notify(f"{run.path} is finished; nothing to do")
            if not run.report_path.is_file():
                with run:
                    run.acquire()
                    _draw(run)
            return _report(command, run)
        materials = _found_again(run, notify)
    with run:
        run.acquire()
        if not _train(run, materials, console):
            notify(f"go on with: lowregret sft --resume {run.path}")
            return 130
        _draw(run)
    return _report(command, run)


@dataclass(frozen=True, kw_only=True)
class _Materials:
    """What a run is made of, found before it is started."""

    model: ModelFolder
    data: TokenizedData
    further: dict[str, ExampleStore]
    """Data sets that are only evaluated on, by name."""


def _start(command: Sft, request: Request, notify: Notify, console: Console) -> tuple[RunDirectory, _Materials]:
    """A new run directory with its plan, and what the run trains on."""
    facts = device_facts(request.spec.hardware.device)
    require_tracker(request.spec)
    found = _find(request.spec, notify)
    model, data = found.model, found.data
    shape = read_shape(model.path)
    spec, reasons = with_slots(request, command, shape, data.facts, facts)
    facts = confirm_device(spec.hardware.device, facts)
    plan = with_reasons(resolve(spec, shape=shape, facts=data.facts, hardware=facts), reasons)
    print_plan(plan, shape, console)
    out = command.out or _default_out(command, spec)
    environment = collect_environment(threads=plan.threads, device=plan.device, command=sys.argv)
    run = RunDirectory.create(out, spec=spec, plan=plan, environment=environment)
    run.write_data_report(_data_report(data, model))
    notify(f"run directory: {run.path}")
    return run, found


def _find(spec: RunSpec, notify: Notify) -> _Materials:
    """Model and data, in tokens."""
    ensure_bases([spec.model], notify=notify)
    model = locate_model(spec.model, notify=notify)
    tokenizer = TextTokenizer.from_folder(model.path)
    return _Materials(
        model=model,
        data=tokenize(spec.data, tokenizer, notify),
        further={source: load_eval_data(source, spec.data, tokenizer) for source in spec.train.also_eval},
    )


def _default_out(command: Sft, spec: RunSpec) -> Path:
    """A folder that no earlier run has, so that a command can be repeated."""
    return Path("runs") / f"{run_name(command.spec, spec)}-{datetime.now():%Y%m%d-%H%M%S}"


def _reopen(command: Sft, folder: Path) -> RunDirectory:
    """The run to go on with, if the command asks for nothing else than its spec."""
    run = RunDirectory.open(folder)
    remedy = "a resumed run keeps its spec; leave it out, or start a new run"
    if run.spec_changed:
        raise CheckpointError(f"{folder / 'spec.toml'}: was changed since the run began; undo that, or start a new run")
    if command.out is not None:
        raise CheckpointError(f"--out: a resumed run stays in {folder}; leave it out")
    if command.spec is not None and request_of(replace(command, resume=None)).spec != run.spec:
        raise CheckpointError(f"{command.spec}: is not the spec of {folder}; {remedy}")
    refuse_changes(run.spec, command, where=str(folder), remedy=remedy)
    return run


def _found_again(run: RunDirectory, notify: Notify) -> _Materials:
    """Model and data of a run that goes on, if they are still what they were."""
    found = _find(run.spec, notify)
    require_same(run, model=found.model, data=found.data)
    confirm_device(run.spec.hardware.device, device_facts(run.plan.device))
    return found


def _data_report(data: TokenizedData, model: ModelFolder) -> dict[str, Any]:
    """What became of the examples, with the hashes that a resume compares."""
    return {**asdict(data.report), "model_hash": model.content_hash, "data_hash": data.content_hash}


def _train(run: RunDirectory, materials: _Materials, console: Console) -> bool:
    """Train to the last step; False where the run was asked to stop and has its checkpoint."""
    spec = run.spec
    from lowregret.training.sft import Interrupted, train

    silence_transformers()
    with ExitStack() as stack:
        shown = stack.enter_context(display(console))
        listeners: list[ProgressListener] = [shown]
        if spec.tracking.tracker is not None:
            listeners.append(stack.enter_context(open_tracker(spec, run.path, shown.on_message)))
        listener = Fan(listeners)
        listener.on_plan(run.plan)
        try:
            train(run, model=materials.model, data=materials.data, listener=listener, also_eval=materials.further)
        except Interrupted as stop:
            listener.on_message(str(stop))
            return False
    return True


def _draw(run: RunDirectory) -> None:
    from lowregret.report.figures import write_figures
    from lowregret.report.html import write_report

    write_figures(run)
    write_report(run)


def _report(command: Sft, run: RunDirectory) -> int:
    """Print how the run ended; the exit code."""
    if command.json:
        json.dump(result_of(run), sys.stdout)
        sys.stdout.write("\n")
    else:
        print_result(run, Console())
    slots: dict[str, dict[str, Any]] = (run.summary or {})["slots"]
    if all(slot["diverged"] for slot in slots.values()):
        print("every slot diverged; lower the learning rates", file=sys.stderr)
        return 1
    fell_short = [name for name, slot in slots.items() if not _improved(slot)]
    if command.must_improve and fell_short:
        print(f"the test NLL did not fall by {MIN_DROP} nats: {', '.join(fell_short)}", file=sys.stderr)
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


def _improved(slot: dict[str, Any]) -> bool:
    before, after = slot["initial_nll"]["test"], slot["final_nll"].get("test")
    return None not in (before, after) and after <= before - MIN_DROP
