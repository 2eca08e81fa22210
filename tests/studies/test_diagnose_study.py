"""What `diagnose` says of a study: open verdicts, edges, lost arms, missing seeds; and of the runs in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lowregret.cli.main import run
from lowregret.errors import CheckpointError
from lowregret.specs import Arm, DataSpec, ModelSpec, PlannedBank, PlannedCell, QuestionSpec, StudyPlan, StudySpec
from lowregret.store.study import CellRecord, StudyDirectory
from lowregret.studies.diagnose import Diagnosis, Symptom, diagnose_study
from studies.cells import GRID, full, lora
from studies.runs import FACTS, environment, falling, logged
from studies.runs import lora as slot

Loss = Callable[[Arm, float, int], float]
BEST = GRID[3]


def bowl(arm: Arm, lr: float, seed: int) -> float:
    return 1.0 + 0.1 * math.log(lr / BEST) ** 2 + 0.001 * seed


def study(
    folder: Path,
    loss: Loss = bowl,
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    lost: Callable[[Arm, float], bool] = lambda arm, lr: False,
    unfinished: int = 0,
    findings: Sequence[dict[str, str]] = (),
    banks: tuple[PlannedBank, ...] = (),
) -> StudyDirectory:
    """A study of two arms whose cells have these final losses."""
    question = QuestionSpec(protocol="rank", data=DataSpec(source="none"), seeds=seeds)
    spec = StudySpec(name="rank", model=ModelSpec(source="none"), questions=(question,))
    made = StudyDirectory.create(folder, spec=spec, environment=environment())
    planned = [
        PlannedCell(cell=f"{arm.label}-{lr:.3g}-{seed}", question=0, arm=arm, lr=lr, seed=seed)
        for arm in (lora(8), full())
        for lr in GRID
        for seed in seeds
    ]
    with made:
        made.write_plan(StudyPlan(cells=tuple(planned), banks=banks))
        for cell in planned[: len(planned) - unfinished]:
            (folder / "cells" / cell.cell).mkdir(parents=True)
            final = loss(cell.arm, cell.lr, cell.seed)
            made.write_record(
                CellRecord(
                    cell=cell.cell,
                    bank="b",
                    steps=(0, 100),
                    validation=(5.0, final),
                    test=(5.0, final),
                    diverged=lost(cell.arm, cell.lr),
                    tokens=1,
                    last_epoch_nats=1.0,
                    seconds=0.0,
                )
            )
        made.write_findings(findings)
    return made


def of(diagnosis: Diagnosis, rule: str) -> list[Symptom]:
    assert rule in diagnosis.checked
    return [symptom for symptom in diagnosis.symptoms if symptom.rule == rule]


def test_a_study_without_failures_has_none(tmp_path: Path):
    assert diagnose_study(study(tmp_path / "s")).symptoms == ()


def test_a_minimum_at_the_edge(tmp_path: Path):
    found = diagnose_study(study(tmp_path / "s", lambda arm, lr, seed: 1.0 - 0.1 * math.log(lr)))
    assert {s.where for s in of(found, "lr-on-the-edge")} == {"rank: full, rank: r8"}
    assert not found.serious


def test_cells_that_diverged(tmp_path: Path):
    few = diagnose_study(study(tmp_path / "few", lost=lambda arm, lr: arm.method == "lora" and lr > GRID[5]))
    assert [(s.where, s.severity) for s in of(few, "diverged")] == [("rank: r8", "note")]
    arm = diagnose_study(study(tmp_path / "arm", lost=lambda arm, lr: arm.method == "lora"))
    assert [(s.where, s.severity) for s in of(arm, "diverged")] == [("rank: r8", "serious")]
    assert "21 of 21 cells" in of(arm, "diverged")[0].seen
    assert arm.serious


def test_too_few_seeds(tmp_path: Path):
    found = diagnose_study(study(tmp_path / "s", seeds=(0,)))
    assert [s.remedy for s in of(found, "few-seeds")] == ["a new study with --seeds 3"]


def test_cells_that_are_not_finished(tmp_path: Path):
    (symptom,) = of(diagnose_study(study(tmp_path / "s", unfinished=4)), "unfinished")
    assert symptom.seen == "4 of 42 planned cells are not finished"
    assert symptom.remedy == f"lowregret study --resume {tmp_path / 's'}"


def test_open_verdicts_say_what_would_settle_them(tmp_path: Path):
    open_one = {"claim": "C3", "question": "?", "verdict": "inconclusive", "reason": "too wide", "settles": "5 seeds"}
    findings = [open_one, {**open_one, "claim": "C6", "verdict": "supported"}]
    (symptom,) = of(diagnose_study(study(tmp_path / "s", findings=findings)), "inconclusive")
    assert (symptom.where, symptom.seen, symptom.remedy) == ("C3", "too wide", "5 seeds")


def test_a_record_that_was_edited_is_refused(tmp_path: Path):
    made = study(tmp_path / "s")
    record = next((tmp_path / "s" / "cells").rglob("record.json"))
    record.write_text(record.read_text().replace("5.0", "4.0"))
    with pytest.raises(CheckpointError, match="checksum"):
        diagnose_study(made)


def test_runs_of_a_study_are_judged_by_what_no_protocol_intends(tmp_path: Path):
    cell = f"r8-{BEST:.3g}-0"
    made = study(tmp_path / "s", banks=(PlannedBank(bank="b", cells=(cell,)),))

    def by_heart(name: str, step: int) -> float:
        return falling(step) + 0.002 * max(0, step - 64)

    few = replace(FACTS, num_examples=100)
    hot = [slot(cell, 8, 1e-7, targets=("attention",))]  # what a protocol may intend
    logged(made.bank_folder("b"), hot, by_heart, training=lambda _, k: falling(k), facts=few)
    found = diagnose_study(made)
    assert [(s.rule, s.where) for s in found.symptoms] == [("overfitted", f"r8 at {BEST:.2g}, seed 0")]
    assert ("rows-dropped", "no counts of rows (data.json)") in found.unchecked


def test_the_command_reads_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    study(tmp_path / "calm")
    assert run(["diagnose", str(tmp_path / "calm")]) == 0
    assert capsys.readouterr().out.startswith("nothing found\nchecked: unfinished, inconclusive")
    study(tmp_path / "lost", lost=lambda arm, lr: arm.method == "lora")
    assert run(["diagnose", str(tmp_path / "lost")]) == 1
    assert "rank: r8" in capsys.readouterr().out
