"""`lowregret sft`: parse, prepare, plan, train, report. The training itself is `training.sft.train`.

Guarantees: everything that can be refused is refused before the base's weights are loaded; stdout carries the result
alone, progress goes to stderr; a stopped run says how to go on.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from lowregret.cli.flags import Sft
from lowregret.cli.live import Fan, display
from lowregret.cli.machine import confirm_device, device_facts
from lowregret.cli.prepare import (
    Notify,
    Request,
    notify_on,
    request_of,
    run_name,
    silence_transformers,
    tokenize,
    with_reasons,
    with_slots,
)
from lowregret.cli.specs import refuse_changes
from lowregret.cli.tables import print_plan, print_result
from lowregret.cli.trackers import open_tracker
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
        run, model, data = _start(command, request_of(command), notify, console)
    else:
        run = _reopen(command, command.resume)
        if run.finished:
            notify(f"{run.path} is finished; nothing to do")
            return _report(command, run)
        model, data = _materials(run, notify)
    with run:
        run.acquire()
        if not _train(run, model, data, console):
            notify(f"go on with: lowregret sft --resume {run.path}")
            return 130
        _draw(run)
    return _report(command, run)


def _start(
    command: Sft, request: Request, notify: Notify, console: Console
) -> tuple[RunDirectory, ModelFolder, TokenizedData]:
    """A new run directory with its plan, and what the run trains on."""
    facts = device_facts(request.spec.hardware.device)
    model = locate_model(request.spec.model, notify=notify)
    data = tokenize(request.spec.data, TextTokenizer.from_folder(model.path), notify)
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
    return run, model, data


def _default_out(command: Sft, spec: RunSpec) -> Path:
    """A folder that no earlier run has, so that a command can be repeated."""
    return Path("runs") / f"{run_name(command.spec, spec)}-{datetime.now():%Y%m%d-%H%M%S}"


def _reopen(command: Sft, folder: Path) -> RunDirectory:
    """The run to go on with, if the command asks for nothing else than its spec."""
    run = RunDirectory.open(folder)
    remedy = "a resumed run keeps its spec; leave it out, or start a new run"
    if command.out is not None:
        raise CheckpointError(f"--out: a resumed run stays in {folder}; leave it out")
    if command.spec is not None and request_of(replace(command, resume=None)).spec != run.spec:
        raise CheckpointError(f"{command.spec}: is not the spec of {folder}; {remedy}")
    refuse_changes(run.spec, command, where=str(folder), remedy=remedy)
    return run


def _materials(run: RunDirectory, notify: Notify) -> tuple[ModelFolder, TokenizedData]:
    """Model and data of a run that goes on, if they are still what they were."""
    spec = run.spec
    model = locate_model(spec.model, notify=notify)
    data = tokenize(spec.data, TextTokenizer.from_folder(model.path), notify)
    recorded = run.data_report or {}
    for what, source, found in (
        ("model", spec.model.source, model.content_hash),
        ("data", spec.data.source, data.content_hash),
    ):
        if recorded.get(f"{what}_hash", found) != found:
            raise CheckpointError(f"{run.path}: the {what} {source} has changed since it began; start a new run")
    confirm_device(spec.hardware.device, device_facts(run.plan.device))
    return model, data


def _data_report(data: TokenizedData, model: ModelFolder) -> dict[str, Any]:
    """What became of the examples, with the hashes that a resume compares."""
    return {**asdict(data.report), "model_hash": model.content_hash, "data_hash": data.content_hash}


def _train(run: RunDirectory, model: ModelFolder, data: TokenizedData, console: Console) -> bool:
    """Train to the last step; False where the run was asked to stop and has its checkpoint."""
    spec = run.spec
    tokenizer = TextTokenizer.from_folder(model.path)
    further = {source: load_eval_data(source, spec.data, tokenizer) for source in spec.train.also_eval}
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
            train(run, model=model, data=data, listener=listener, also_eval=further)
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
    return not slot["diverged"] and slot["final_nll"]["test"] <= slot["initial_nll"]["test"] - MIN_DROP
