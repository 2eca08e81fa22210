"""`lowregret study`: ask, train what is missing, judge, report. The statistics are those of `studies`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Generator, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowregret.cli.bases import ensure_bases
from lowregret.cli.machine import confirm_device, device_facts
from lowregret.cli.prepare import notify_on, silence_transformers
from lowregret.cli.specs import numbers
from lowregret.cli.study_flags import Study
from lowregret.cli.study_live import display_study
from lowregret.errors import CheckpointError, SpecError
from lowregret.launch.executors import InProcess, Workers
from lowregret.launch.ray_cluster import RayCluster
from lowregret.launch.study import Context, Executor, prepare, run_study
from lowregret.specs import DataSpec, GridSpec, HardwareSpec, ModelSpec, QuestionSpec, StudySpec, TrainSpec
from lowregret.specs.codec import read_toml
from lowregret.store import collect_environment
from lowregret.store.cells_table import write_cells_table
from lowregret.store.study import StudyDirectory
from lowregret.studies.analysis import findings_of_study
from lowregret.studies.extend import refuse_other, with_seeds
from lowregret.studies.finding import Finding

TOML = ".toml"


def study(command: Study) -> int:
    """Train what is missing and judge; 0 done, 1 the budget ended it, 130 stopped with checkpoints."""
    console = Console(stderr=True)
    notify = notify_on(console)
    spec = study_spec(command) if command.resume is None else _resumed_spec(command, command.resume)
    _refuse_ray_where_it_is_not_used(command, spec)
    if command.power:
        return _print_power(spec, command)
    facts = device_facts(spec.hardware.device)
    ensure_bases([spec.model, *(model for question in spec.questions for model in question.models)], notify=notify)
    facts = confirm_device(spec.hardware.device, facts)
    context = prepare(spec, machine=facts)
    threads = spec.hardware.threads or facts.threads
    environment = collect_environment(threads=threads, device=facts.kind, command=sys.argv)
    silence_transformers()
    # A cluster that can't be reached leaves no directory behind.
    with (
        _sigterm_interrupts(),
        _executor(command, spec, facts.kind, notify) as executor,
        _directory(command, spec, environment) as directory,
    ):
        notify(f"study directory: {directory.path}")
        directory.acquire()
        complete = _train(directory, context, executor, environment, console)
        findings = findings_of_study(directory)
        directory.write_findings([_plain(finding) for finding in findings])
        write_cells_table(directory)
        _report(directory)
    if complete is None:
        notify(f"go on with: lowregret study --resume {directory.path}")
        return 130
    _print(command, directory, findings)
    return 0 if complete else 1


def study_spec(command: Study) -> StudySpec:
    """The study that a spec file or the flags describe.

    Raises:
        SpecError: something is missing, or a flag stands beside a spec file.
    """
    if command.what is None:
        raise SpecError("study: is missing; name a protocol such as rank, or a spec file")
    if command.what.endswith(TOML):
        _refuse_flags(command, f"{command.what} says what is asked; leave it out or change the file")
        return read_toml(StudySpec, command.what)
    if command.model is None:
        raise SpecError("--model: is missing; give a hub id, a folder, a .gguf file, smollm2-135m, micro or nano")
    if command.data is None:
        raise SpecError("--data: is missing; give a hub id, a file or a generated set")
    hardware = HardwareSpec(device=command.device or "auto", dtype=command.dtype or "auto", threads=command.threads)
    return StudySpec(
        name=command.what,
        model=ModelSpec(source=command.model),
        questions=(_question(command, command.what),),
        hardware=hardware,
        workers=command.workers or 1,
        budget_seconds=None if command.budget is None else 60 * command.budget,
    )


def _question(command: Study, protocol: str) -> QuestionSpec:
    if command.steps is None:
        raise SpecError("--steps: is missing; a study compares runs of stated length, such as --steps 150")
    steps = numbers("steps", command.steps, int)
    batches = numbers("batch_size", command.batch_size, int)
    default = QuestionSpec(protocol=protocol, data=DataSpec(source=command.data or ""))
    data = default.data
    for field in ("max_length", "limit", "validation_size", "test_size"):
        value = getattr(command, field)
        if value is not None:
            data = replace(data, **{field: value})
    if command.seeds is not None and command.seeds < 1:
        raise SpecError(f"--seeds: {command.seeds} must be at least 1; give 3 or more for a verdict")
    return QuestionSpec(
        protocol=protocol,
        data=data,
        train=TrainSpec(steps=steps[0], batch_size=batches[0] if batches else TrainSpec().batch_size, num_samples=0),
        ranks=numbers("rank", command.rank, int) or default.ranks,
        alphas=numbers("alpha", command.alpha, float) or default.alphas,
        batch_sizes=batches if len(batches) > 1 else (),
        run_lengths=steps if len(steps) > 1 else (),
        support=command.support or default.support,
        seeds=default.seeds if command.seeds is None else tuple(range(command.seeds)),
        grid=_grid(command),
    )


def _grid(command: Study) -> GridSpec:
    rates, full_rates = numbers("lr", command.lr, float), numbers("full_lr", command.full_lr, float)
    kind = command.grid or ("fixed" if rates else "adaptive")
    if kind == "fixed" and not rates:
        raise SpecError("--lr: a fixed grid needs its rates; give --lr 1e-4,3e-4,1e-3")
    if kind != "fixed" and (rates or full_rates):
        raise SpecError(f"--lr: a {kind} grid chooses its own rates; leave --lr out or use --grid fixed")
    return GridSpec(kind=kind, rates=rates, full_rates=full_rates)


def _resumed_spec(command: Study, folder: Path) -> StudySpec:
    """The folder's spec, with what the command adds to it: seeds, or a spec file that asks for more."""
    if command.out is not None:
        raise CheckpointError(f"--out: a resumed study stays in {folder}; leave it out")
    old = StudyDirectory.open(folder).spec
    spec = old
    if command.what is not None and command.what.endswith(TOML):
        spec = read_toml(StudySpec, command.what)
        refuse_other(old, spec, where=command.what)
    remedy = f"{folder} says what is asked; leave it out, or start a new study"
    _refuse_flags(command, remedy, also={"seeds", "workers", "budget"})
    if command.seeds is not None:
        spec = with_seeds(spec, command.seeds)
    budget = spec.budget_seconds if command.budget is None else 60 * command.budget
    return replace(spec, workers=command.workers or spec.workers, budget_seconds=budget)


def _refuse_flags(command: Study, remedy: str, also: Set[str] = frozenset()) -> None:
    """Nothing beside a spec file or a resumed study may ask for something else."""
    allowed = {"what", "out", "resume", "ray", "power", "json", "debug"} | also
    for name, value in vars(command).items():
        if name not in allowed and value is not None and value is not False:
            raise SpecError(f"--{name.replace('_', '-')}: {remedy}")


def _refuse_ray_where_it_is_not_used(command: Study, spec: StudySpec) -> None:
    if command.ray is None:
        return
    if command.power:
        raise SpecError("--ray: --power trains nothing; leave one of them out")
    if spec.hardware.device.startswith("cuda:"):
        raise SpecError(f"device: with --ray the cluster deals out the GPUs; {spec.hardware.device} must be cuda")


@contextmanager
def _sigterm_interrupts() -> Generator[None, None, None]:
    """SIGTERM as Ctrl-C: where workers train, nothing here listens for it otherwise."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _executor(
    command: Study, spec: StudySpec, device: str, notify: Callable[[str], None]
) -> AbstractContextManager[Executor]:
    """Where the banks train: how many at once is the study's, where is not."""
    if command.ray is not None:
        threads = spec.hardware.threads or 1
        return RayCluster(command.ray, number=spec.workers, threads=threads, cuda=device == "cuda", notify=notify)
    return Workers(spec.workers, notify) if spec.workers > 1 else nullcontext(InProcess())


def _directory(command: Study, spec: StudySpec, environment: Any) -> StudyDirectory:
    if command.resume is not None:
        directory = StudyDirectory.open(command.resume)
        if directory.spec != spec:
            directory.extend_spec(spec)
        return directory
    out = command.out or Path("studies") / f"{spec.name}-{datetime.now():%Y%m%d-%H%M%S}"
    return StudyDirectory.create(out, spec=spec, environment=environment)


def _train(
    directory: StudyDirectory, context: Context, executor: Executor, environment: Any, console: Console
) -> bool | None:
    """True where every question has what it asked for, False where the budget ended it, None where it was stopped."""
    from lowregret.training.sft import Interrupted

    with display_study(console) as shown:
        try:
            return run_study(directory, context, executor=executor, environment=environment, listener=shown)
        except (Interrupted, KeyboardInterrupt):
            return None


def _report(directory: StudyDirectory) -> None:
    from lowregret.report.study_html import write_study_report

    write_study_report(directory)


def _plain(finding: Finding) -> dict[str, Any]:
    """As `findings.json` holds it."""
    fields = asdict(finding)
    fields["details"] = dict(finding.details)
    return fields


def _print(command: Study, directory: StudyDirectory, findings: tuple[Finding, ...]) -> None:
    if command.json:
        result = {"study": str(directory.path), "findings": [_plain(finding) for finding in findings]}
        json.dump(result, sys.stdout, allow_nan=False)
        sys.stdout.write("\n")
        return
    console = Console()
    table = Table(title="findings", title_justify="left", header_style="dim")
    for column in ("claim", "verdict", "estimate", "interval", "seeds", "why"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        interval = "-" if finding.interval is None else f"{finding.interval[0]:.3g} to {finding.interval[1]:.3g}"
        estimate = "-" if finding.estimate is None else f"{finding.estimate:.3g}"
        why = finding.reason + (f"; to settle it: {finding.settles}" if finding.settles else "")
        row = (finding.claim, finding.verdict, estimate, interval, str(finding.seeds), f"{finding.question} {why}")
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    console.print(Text(f"report: {directory.report_path}"), soft_wrap=True)


def _print_power(spec: StudySpec, command: Study) -> int:
    from lowregret.studies.simulate import power_table

    rows = [row for question in spec.questions for row in power_table(question)]
    if command.json:
        json.dump(rows, sys.stdout)
        sys.stdout.write("\n")
        return 0
    table = Table(title="verdicts over simulated studies", title_justify="left", header_style="dim")
    for column in rows[0] if rows else ():
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    return 0
