"""`lowregret study`: ask, train what is missing, judge, report. The statistics are those of `studies`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowregret.cli.bases import ensure_bases
from lowregret.cli.machine import confirm_device, device_facts
from lowregret.cli.prepare import notify_on, silence_transformers
from lowregret.cli.study_flags import Study
from lowregret.cli.study_live import display_study
from lowregret.cli.study_spec import resumed_spec, study_spec
from lowregret.errors import SpecError
from lowregret.launch.executors import InProcess, Workers
from lowregret.launch.ray_cluster import RayCluster
from lowregret.launch.study import Context, Executor, prepare, run_study
from lowregret.specs import StudySpec
from lowregret.store import collect_environment
from lowregret.store.cells_table import write_cells_table
from lowregret.store.study import StudyDirectory
from lowregret.studies.analysis import findings_of_study
from lowregret.studies.finding import Finding


def study(command: Study) -> int:
    """Train what is missing and judge; 0 done, 1 the budget ended it, 130 stopped with checkpoints."""
    console = Console(stderr=True)
    notify = notify_on(console)
    spec = study_spec(command) if command.resume is None else resumed_spec(command, command.resume)
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
