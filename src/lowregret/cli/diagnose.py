"""`lowregret diagnose`: what went wrong in a run or a study, and what to do about it. No torch."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowregret.cli.flags import Diagnose
from lowregret.cli.prepare import Notify, notify_on
from lowregret.errors import CheckpointError, ModelError, SpecError
from lowregret.models.locate import ModelFolder, locate_model
from lowregret.planner.shapes import read_shape
from lowregret.specs.shape import ModelShape
from lowregret.store import RunDirectory
from lowregret.store.run import SPEC
from lowregret.store.study import STUDY, StudyDirectory
from lowregret.studies.diagnose import Diagnosis, Symptom, diagnose_run, diagnose_study, surviving_shares, view_of

STYLES = {"serious": "bold red", "warning": "yellow", "note": "dim"}


def diagnose(command: Diagnose) -> int:
    """Print what was found; 1 where something is serious, else 0."""
    found = _diagnosis(command.folder, notify_on(Console(stderr=True)))
    if command.json:
        json.dump(asdict(found), sys.stdout, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        _print(found, Console())
    return 1 if found.serious else 0


def _diagnosis(folder: Path, notify: Notify) -> Diagnosis:
    if (folder / STUDY).is_file():
        return diagnose_study(StudyDirectory.open(folder))
    if not (folder / SPEC).is_file():
        raise CheckpointError(f"{folder}: is neither a run nor a study directory (no {SPEC}, no {STUDY}); name one")
    run = RunDirectory.open(folder)
    if run.spec.task == "rl":
        raise SpecError(
            f"{folder}: the rules are about losses, and this run is one of RL; its {run.report_path.name} marks slots "
            "that diverged or collapsed"
        )
    base, shape = _base(run, notify)
    surviving = {} if base is None else surviving_shares(run, base.path)
    return diagnose_run(view_of(run, shape=shape, surviving=surviving))


def _base(run: RunDirectory, notify: Notify) -> tuple[ModelFolder | None, ModelShape | None]:
    """The base and its shape, where it still is what it was; a run can be read without it, by fewer rules."""
    try:
        model = locate_model(run.spec.model, weights=False, notify=notify)
        shape = read_shape(model.path)
    except (ModelError, SpecError) as error:
        notify(f"fewer rules apply: {error}")
        return None, None
    recorded = (run.data_report or {}).get("model_hash", model.content_hash)
    if recorded != model.content_hash:
        notify(f"fewer rules apply: the model {run.spec.model.source} has changed since the run began")
        return None, None
    return model, shape


def _print(found: Diagnosis, console: Console) -> None:
    if found.symptoms:
        console.print(_table(found.symptoms))
    else:
        print("nothing found")
    console.print(Text(f"checked: {', '.join(found.checked)}", style="dim"))
    for name, reason in found.unchecked:
        console.print(Text(f"not checked: {name} ({reason})", style="dim"))


def _table(symptoms: tuple[Symptom, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("found", "where", "what was seen, why it matters, and the remedy"):
        table.add_column(title, overflow="fold")
    for symptom in symptoms:
        found = Text(symptom.severity, style=STYLES[symptom.severity]).append(f"\n{symptom.rule}", style="default")
        said = Text(symptom.seen).append(f"\n{symptom.why}", style="dim").append(f"\nremedy: {symptom.remedy}\n")
        table.add_row(found, Text(symptom.where), said)
    return table
