"""What went wrong in a study: verdicts left open and why, and the failures of runs that no protocol intends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lowregret.store import RunDirectory
from lowregret.store.study import StudyDirectory
from lowregret.studies.best_rate import refuse_edge
from lowregret.studies.diagnose.run import RULES, Diagnosis, diagnose_run, ordered
from lowregret.studies.diagnose.symptom import Symptom
from lowregret.studies.diagnose.view import view_of
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Outcome
from lowregret.studies.reading import outcomes_of
from lowregret.studies.surface import Refused, Surface, surfaces
from lowregret.studies.swallowing import USUAL

OF_BANKS = (
    "overfitted",
    "update-swallowed",
    "leaked-test-rows",
    "splits-disagree",
    "rows-dropped",
    "completions-masked",
)
"""Rules that hold for a study's runs too. The others look for what a protocol varies on purpose: rates that diverge,
small ranks, few steps, large batches, attention alone."""
OF_STUDY = ("unfinished", "inconclusive", "lr-on-the-edge", "diverged", "few-seeds")
HALF = 0.5


def diagnose_study(study: StudyDirectory) -> Diagnosis:
    """What keeps a study from its verdicts.

    Raises:
        CheckpointError: a cell's record was changed by hand.
    """
    found = list(_unfinished(study))
    found += _inconclusive(study)
    for number, question in enumerate(study.spec.questions):
        least = round(Margins.of(question.margins).least_seeds)
        for surface in surfaces(outcomes_of(study, number)).values():
            found += _of_arm(surface, least, f"{question.protocol}: {surface.arm.label}")
    banks = _banks(study)
    return Diagnosis(
        symptoms=ordered([*found, *(symptom for bank in banks for symptom in bank.symptoms)]),
        checked=(*OF_STUDY, *(name for name in OF_BANKS if any(name in bank.checked for bank in banks))),
        unchecked=tuple(dict(reason for bank in banks for reason in bank.unchecked).items()),
    )


def _unfinished(study: StudyDirectory) -> Iterator[Symptom]:
    cells = {planned.cell for planned in study.plan.cells}
    missing = sum(not study.has_record(cell) for cell in cells)
    if missing or not cells:
        yield Symptom(
            rule="unfinished",
            where="study",
            severity="note",
            seen=f"{missing} of {len(cells)} planned cells are not finished",
            why="what is found so far rests on the others",
            remedy=f"lowregret study --resume {study.path}",
        )


def _inconclusive(study: StudyDirectory) -> Iterator[Symptom]:
    for finding in study.read_findings():
        if finding["verdict"] == "inconclusive":
            yield Symptom(
                rule="inconclusive",
                where=str(finding["claim"]),
                severity="warning",
                seen=str(finding["reason"]),
                why=f"no answer yet to: {finding['question']}",
                remedy=str(finding.get("settles") or "") or "more seeds (--seeds)",
            )


def _of_arm(surface: Surface, least: int, where: str) -> Iterator[Symptom]:
    lost = [outcome for outcome in surface.outcomes if outcome.diverged]
    if lost:
        yield _diverged(lost, surface, where)
    if len(surface.seeds) < least:
        yield Symptom(
            rule="few-seeds",
            where=where,
            severity="warning",
            seen=f"{len(surface.seeds)} seeds at every rate; a verdict needs {least}",
            why="without several seeds there is no interval, and no difference can be told from noise",
            remedy=f"a new study with --seeds {least}",
        )
    try:
        refuse_edge(surface)
    except Refused as refused:
        if len(lost) < len(surface.outcomes):
            yield Symptom(
                rule="lr-on-the-edge",
                where=where,
                severity="warning",
                seen=refused.reason,
                why="the best rate may lie beyond those that were tried; no verdict rests on a minimum at an edge",
                remedy=f"{refused.settles}: --grid adaptive, or a wider --lr",
            )


def _diverged(lost: list[Outcome], surface: Surface, where: str) -> Symptom:
    """High rates that diverge are how a grid finds its edge; an arm that is lost, or half of it, is a failure."""
    total = len(surface.outcomes)
    lowest = min(outcome.lr for outcome in lost)
    many = len(lost) >= HALF * total
    return Symptom(
        rule="diverged",
        where=where,
        severity="serious" if len(lost) == total else "warning" if many else "note",
        seen=f"{len(lost)} of {total} cells were retired, from lr {lowest:.2g} on",
        why="their losses do not exist" + (", and few rates are left to find the best among" if many else ""),
        remedy=f"--lr below {lowest:.2g}" if many else "nothing to do where lower rates have the minimum",
    )


def _banks(study: StudyDirectory) -> list[Diagnosis]:
    """The rules that hold for runs of a study, with cells called by their arm and rate."""
    names = {cell.cell: f"{cell.arm.label} at {cell.lr:.2g}, seed {cell.seed}" for cell in study.plan.cells}
    usual = {cell.cell for cell in study.plan.cells if cell.arm.variant in USUAL.values()}
    rules = tuple(rule for rule in RULES if rule.name in OF_BANKS)
    found: list[Diagnosis] = []
    for bank in study.plan.banks:
        folder = study.bank_folder(bank.bank)
        if (folder / "spec.toml").is_file():
            diagnosis = diagnose_run(view_of(RunDirectory.open(folder)), rules)
            symptoms: list[Symptom] = []
            for symptom in diagnosis.symptoms:
                cells = symptom.where.split(", ")  # several cells of a bank with one symptom are one line
                if not (symptom.rule == "update-swallowed" and usual.issuperset(cells)):
                    where = ", ".join(names.get(cell, cell) for cell in cells)
                    symptoms.append(replace(symptom, where=where))
            found.append(replace(diagnosis, symptoms=tuple(symptoms)))
    return found
