"""`cells.parquet`: one row a finished cell, the same numbers as the records."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet
import pytest

from lowregret.specs import Arm, DataSpec, ModelSpec, PlannedCell, QuestionSpec, RunSpec, StudyPlan, StudySpec
from lowregret.store import collect_environment
from lowregret.store.cells_table import write_cells_table
from lowregret.store.study import CellRecord, Dynamics, ForwardFidelity, StudyDirectory

QUESTION = QuestionSpec(protocol="rank", data=DataSpec(source="d"))
SPEC = StudySpec(name="mine", model=ModelSpec(source="m"), questions=(QUESTION,))
ARM = Arm(method="lora", rank=4, params=100, batch_size=8, steps=2)


ACTED = ForwardFidelity(
    step=1, arithmetic="add", fidelity=0.4, low=0.3, high=0.5, fp32_drop=0.1, drop=0.04, sequences=9
)


def record(cell: str, *, stopped: bool = False, dynamics: Dynamics | None = None) -> CellRecord:
    return CellRecord(
        cell=cell, bank="b", steps=(0, 2), validation=(2.0, 1.5), test=(2.0, 1.75), diverged=False, tokens=64,
        last_epoch_nats=9.0, seconds=0.5, stopped=stopped, dynamics=dynamics,
        fidelity=() if stopped else (ACTED,),
    )  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> StudyDirectory:
    environment = collect_environment(threads=1, device="cpu", command=["test"])
    study = StudyDirectory.create(tmp_path / "study", spec=SPEC, environment=environment)
    cells = tuple(PlannedCell(cell=c, question=0, arm=ARM, lr=1e-3, seed=k) for k, c in enumerate("abc"))
    for cell in cells:
        study.write_cell_spec(cell.cell, RunSpec(model=SPEC.model, data=QUESTION.data, slots=()))
    study.write_plan(StudyPlan(cells=cells))
    study.write_record(record("a"))
    study.write_record(record("b", stopped=True))
    return study


def test_a_row_for_each_finished_cell(study: StudyDirectory):
    table = pyarrow.parquet.read_table(write_cells_table(study)).to_pylist()
    assert [row["cell"] for row in table] == ["a", "b"]
    first, second = table
    assert (first["protocol"], first["model"], first["rank"], first["lr"], first["seed"]) == ("rank", "m", 4, 1e-3, 0)
    assert first["test"] == [2.0, 1.75]
    assert (first["final_validation"], first["final_test"]) == (1.5, 1.75)
    assert [(row["arithmetic"], row["fidelity"], row["moved"]) for row in first["fidelity"]] == [("add", 0.4, None)]
    assert second["fidelity"] == []
    assert second["stopped"]
    assert second["final_test"] is None


def test_a_record_with_dynamics_reads_back(study: StudyDirectory):
    moved = record("c", dynamics=Dynamics(norm_a=(0.8, 0.9), norm_b=(0.0, 0.1), kernel_alignment=0.9, kernel_error=0.2))
    study.write_record(moved)
    assert study.read_record("c") == moved


def test_the_plan_is_read_again_when_it_has_changed(study: StudyDirectory):
    reader = StudyDirectory.open(study.path)
    assert len(reader.plan.cells) == 3
    study.write_plan(StudyPlan(cells=study.plan.cells[:1]))
    assert len(reader.plan.cells) == 1
