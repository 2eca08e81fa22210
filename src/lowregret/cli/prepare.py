"""What `plan` and `sft` do alike: from a spec to the model's folder, its tokens and a resolved plan. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lowregret.cli.flags import Plan, Rl, Sft
from lowregret.cli.rl_specs import with_presets
from lowregret.cli.specs import ranks_of, refuse_changes, slots_of, spec_of, task_of
from lowregret.data.load import TokenizedData, load_data
from lowregret.data.problems import ProblemData
from lowregret.data.tokenizer import TextTokenizer
from lowregret.errors import CheckpointError, SpecError
from lowregret.models.locate import ModelFolder
from lowregret.planner.fits import memory_rank
from lowregret.planner.information import information_of
from lowregret.planner.rank import suggest_rank
from lowregret.planner.validate import validate_spec
from lowregret.specs import DataFacts, DataSpec, Derived, DeviceFacts, Information, ResolvedPlan, RunSpec
from lowregret.specs.codec import read_table, read_toml
from lowregret.specs.shape import ModelShape
from lowregret.store import RunDirectory

Notify = Callable[[str], None]

PROGRESS_SECONDS = 5.0
"""Time between two lines of a long tokenising."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A spec as the user asked for it, and whether a rank is still to be suggested.

    >>> Request.__dataclass_params__.frozen
    True
    """

    spec: RunSpec
    suggest: bool
    """No slots yet: the planner suggests a rank once it knows the data."""


def request_of(command: Sft | Rl | Plan) -> Request:
    """The spec file of the command where it names one, else the spec that its flags describe.

    Raises:
        SpecError: the file can't be read, or a flag says otherwise than the file.
    """
    if command.spec is None:
        spec = spec_of(command)
        if not spec.slots:
            # The suggested rank will be sound; all else is judged before anything is read.
            validate_spec(replace(spec, slots=slots_of(command.slots, (1,))))
            return Request(spec=spec, suggest=True)
        validate_spec(spec)
        return Request(spec=spec, suggest=False)
    spec = with_presets(read_spec(command.spec))
    if not isinstance(command, Plan) and command.track is not None:
        # Tracking is no part of what a run computes, so this flag may add to a file.
        spec = replace(spec, tracking=replace(spec.tracking, tracker=command.track))
    if not isinstance(command, Plan) and spec.task != task_of(command):
        raise SpecError(f"{command.spec}: task: is {spec.task!r}; run it by lowregret {spec.task} {command.spec}")
    refuse_changes(spec, command, where=str(command.spec), remedy="leave the flag out or change the file")
    validate_spec(spec)
    return Request(spec=spec, suggest=False)


def read_spec(file: Path) -> RunSpec:
    """A run's spec from its file, or from the file of a resolved plan (`lowregret plan --out`).

    Raises:
        SpecError: the file can't be read as either.
    """
    if "spec" in read_table(file):
        return read_toml(ResolvedPlan, file).spec
    return read_toml(RunSpec, file)


def notify_on(console: Console) -> Notify:
    """A function that prints one line, as it stands."""
    return lambda message: console.print(Text(message, style="dim"), soft_wrap=True)


def silence_transformers() -> None:
    """No bars of transformers' own while weights are loaded: they would draw over the display."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def tokenize(spec: DataSpec, tokenizer: TextTokenizer, notify: Notify) -> TokenizedData:
    """The data as tokens; a long tokenising says how far it is."""
    last = time.monotonic()

    def progress(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            notify(f"tokenising {spec.source}: {done:,} rows" + ("" if total is None else f" of {total:,}"))

    return load_data(spec, tokenizer, progress=progress)


def require_same(run: RunDirectory, *, model: ModelFolder, data: TokenizedData | ProblemData | None = None) -> None:
    """Check that a run's model and data are still what they were when it began.

    Raises:
        CheckpointError: one has changed.
    """
    recorded = run.data_report or {}
    found = {"model": (run.spec.model.source, model.content_hash)}
    if data is not None:
        found["data"] = (run.spec.data.source, data.content_hash)
    for what, (source, digest) in found.items():
        if recorded.get(f"{what}_hash", digest) != digest:
            raise CheckpointError(f"{run.path}: the {what} {source} has changed since it began; start a new run")


def with_slots(
    request: Request,
    command: Sft | Rl | Plan,
    shape: ModelShape,
    facts: DataFacts,
    machine: DeviceFacts,
    information: Information | None = None,
) -> tuple[RunSpec, tuple[Derived, ...]]:
    """The spec with a suggested rank where the user named none, and the reason for it.

    Memory caps the rank where the run is for this machine, or for a stated memory.
    """
    if not request.suggest:
        return request.spec, ()
    assert not ranks_of(command.slots)
    targets = slots_of(command.slots, (1,))[0].weights.targets
    unembed = command.slots.unembed
    information = information or information_of(request.spec, facts)
    most = None
    if not isinstance(command, Plan) or request.spec.hardware.memory_bytes is not None:
        most = memory_rank(request.spec, shape, facts, machine, targets=targets, unembed=unembed)
    suggestion = suggest_rank(
        shape,
        facts,
        task=request.spec.task,
        targets=targets,
        unembed=unembed,
        bits=information.bits,
        bits_per_parameter=information.bits_per_parameter,
        memory_rank=most,
    )
    spec = replace(request.spec, slots=slots_of(command.slots, (suggestion.rank,)))
    name = f"slots.{spec.slots[0].name}.weights.rank"
    return spec, (Derived(name=name, value=suggestion.rank, reason=suggestion.reason, source="capacity rule"),)


def with_reasons(plan: ResolvedPlan, reasons: tuple[Derived, ...]) -> ResolvedPlan:
    """The plan with the reasons for what was decided before it."""
    return replace(plan, derived=(*reasons, *plan.derived))


def run_name(spec_file: Path | None, spec: RunSpec) -> str:
    """A name for a run's folder: the spec file's, else the model and the data."""
    if spec_file is not None:
        return spec_file.stem
    return "-".join(Path(source.replace(":", "-")).stem for source in (spec.model.source, spec.data.source))
