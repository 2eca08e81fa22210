"""A study from the command line: it trains what is missing, survives kills, and says what it found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lowregret.cli.main import run
from lowregret.store.run import RunDirectory
from lowregret.store.study import StudyDirectory
from tiny_folder import tiny_model_folder, write_questions

RATES = ("--grid", "fixed", "--lr", "3e-3,1e-2,3e-2,1e-1,3e-1", "--full-lr", "1e-3,3e-3,1e-2,3e-2,1e-1")


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    tiny_model_folder(folder / "model")
    write_questions(folder / "data.jsonl", 80)
    return folder


def flags(materials: Path, *more: str, protocol: str = "certify") -> list[str]:
    return [
        *("study", protocol, "--model", str(materials / "model"), "--data", str(materials / "data.jsonl")),
        *("--rank", "4", "--steps", "4", "--batch-size", "4", "--seeds", "3", "--dtype", "fp32", "--device", "cpu"),
        *("--threads", "1", "--validation-size", "4", "--test-size", "8", *more),
    ]


def findings(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "findings.json").read_text())


def records(folder: Path) -> dict[str, Any]:
    study = StudyDirectory.open(folder)
    return {cell.cell: study.read_record(cell.cell).untimed() for cell in study.plan.cells}


@pytest.fixture(scope="module")
def finished(materials: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that is only read."""
    out = tmp_path_factory.mktemp("finished") / "study"
    assert run(flags(materials, *RATES, "--out", str(out))) == 0
    return out


def test_a_study_leaves_findings_figures_and_a_report(finished: Path):
    (finding,) = findings(finished)
    assert finding["claim"] == "certify"
    assert finding["verdict"] in ("supported", "contradicted", "inconclusive")
    assert finding["reason"]
    # Two arms, five rates, three seeds; LoRA cells share one bank, a full fine-tuning has its own.
    study = StudyDirectory.open(finished)
    assert len(study.plan.cells) == 30
    assert sorted(len(bank.cells) for bank in study.plan.banks) == [1] * 15 + [15]
    assert {"1-certify-curves.png", "1-certify-rates.png", "1-certify-rates.svg"} <= set(
        os.listdir(finished / "figures")
    )
    report = (finished / "report.html").read_text()
    assert "certify" in report
    assert "http://" not in report.split("<script>")[0]


def test_a_bank_saves_no_state_that_nobody_asks_for(
    materials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    writing = RunDirectory.writing_checkpoint

    def counted(run: RunDirectory, step: int) -> Any:
        saved.append(step)
        return writing(run, step)

    monkeypatch.setattr(RunDirectory, "writing_checkpoint", counted)
    more = ("--lr", "3e-3,1e-2", "--grid", "fixed", "--seeds", "1", "--no-curve")
    assert run(flags(materials, *more, "--out", str(tmp_path / "study"), protocol="early")) == 0
    assert saved == []


def test_a_finished_study_trains_nothing_again(finished: Path, capsys: pytest.CaptureFixture[str]):
    before = {file: file.stat().st_mtime_ns for file in finished.glob("banks/*/metrics.jsonl")}
    assert run(["study", "--resume", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == findings(finished)
    assert before == {file: file.stat().st_mtime_ns for file in finished.glob("banks/*/metrics.jsonl")}


def test_killed_twice_it_finds_the_same(finished: Path, materials: Path, tmp_path: Path):
    out = tmp_path / "killed"
    command = flags(materials, *RATES, "--out", str(out))
    for number in (2, 9):
        process = subprocess.Popen(
            [sys.executable, "-m", "lowregret", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while len(list(out.glob("cells/*/record.json"))) < number and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "findings.json").exists()
        command = ["study", "--resume", str(out)]
    assert run(["study", "--resume", str(out)]) == 0
    assert findings(out) == findings(finished)
    assert records(out) == records(finished)


def test_two_workers_find_the_same_and_one_may_die(finished: Path, materials: Path, tmp_path: Path):
    out = tmp_path / "workers"
    command = [sys.executable, "-m", "lowregret", *flags(materials, *RATES, "--workers", "2", "--out", str(out))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("cells/*/record.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(workers_of(process.pid)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "a worker died" in errors
    (mine,), (other,) = findings(out), findings(finished)
    assert mine["verdict"] == other["verdict"]
    if other["estimate"] is not None:
        assert mine["estimate"] == pytest.approx(other["estimate"], abs=1e-4)


def test_asked_to_stop_it_stops_its_workers_and_goes_on_later(finished: Path, materials: Path, tmp_path: Path):
    out = tmp_path / "stopped"
    command = [sys.executable, "-m", "lowregret", *flags(materials, *RATES, "--workers", "2", "--out", str(out))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("cells/*/record.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = workers_of(process.pid)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert f"go on with: lowregret study --resume {out}" in errors
    assert not any(alive(worker) for worker in workers)
    assert run(["study", "--resume", str(out)]) == 0
    assert [finding["verdict"] for finding in findings(out)] == [finding["verdict"] for finding in findings(finished)]


def test_workers_end_with_a_study_that_was_killed(materials: Path, tmp_path: Path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "lowregret", *flags(materials, *RATES, "--workers", "2", "--out", str(out))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("cells/*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(worker) for worker in workers)


def alive(pid: int) -> bool:
    """Whether a process still runs; one that has ended and waits to be counted does not."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def workers_of(pid: int) -> list[int]:
    """Processes that were spawned by this one to train."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_a_cell_that_was_edited_is_refused_by_name(materials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "edited"
    one = ["--grid", "fixed", "--lr", "1e-2", "--full-lr", "1e-3"]
    assert run(flags(materials, *one, "--out", str(out))) == 0
    record = next(out.glob("cells/*/record.json"))
    record.write_text(record.read_text().replace('"diverged": false', '"diverged": true'))
    assert run(["study", "--resume", str(out)]) == 2
    assert f"{record}: was changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--grid", "fixed", "--lr", "1e-2", "--full-lr", "1e-3"), "learning rate"),
        ((*RATES, "--seeds", "1"), "seed"),
    ],
)
def test_too_little_is_inconclusive_and_no_error(materials: Path, tmp_path: Path, more: tuple[str, ...], why: str):
    given = flags(materials)
    if "--seeds" in more:
        place = given.index("--seeds")
        given = [*given[:place], *given[place + 2 :]]
    assert run([*given, *more, "--out", str(tmp_path / "few")]) == 0
    (finding,) = findings(tmp_path / "few")
    assert finding["verdict"] == "inconclusive"
    assert why in finding["reason"] + finding["settles"]
    assert finding["settles"]


def test_a_spent_budget_stops_before_the_next_bank(materials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "budget"
    assert run(flags(materials, *RATES, "--budget", "1e-6", "--out", str(out))) == 1
    assert "the budget of" in capsys.readouterr().err
    assert not list(out.glob("cells/*/record.json"))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["study"], "study: is missing; name a protocol"),
        (["study", "certify"], "--model: is missing"),
        (["study", "certify", "--model", "m"], "--data: is missing"),
        (["study", "certify", "--model", "m", "--data", "d"], "--steps: is missing"),
        (["study", "nonsense", "--model", "{model}", "--data", "{data}", "--steps", "3"], "protocol: 'nonsense'"),
        (["study", "--resume", "nowhere"], "nowhere: not a study directory"),
        (["study", "--resume", "{study}", "--steps", "9"], "--steps: "),
        (["study", "rank", "--model", "m", "--data", "d", "--steps", "3", "--lr", "1e-3", "--grid", "paper"], "--lr"),
    ],
)
def test_bad_input_is_one_line(
    command: list[str], said: str, materials: Path, finished: Path, capsys: pytest.CaptureFixture[str]
):
    names = {"model": str(materials / "model"), "data": str(materials / "data.jsonl"), "study": str(finished)}
    assert run([part.format(**names) for part in command]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line


def test_power_is_told_before_anything_is_trained(
    materials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert run([*flags(materials), "--power", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["claim"] for row in rows} == {"certify"}
    for row in rows:
        assert row["supported"] + row["contradicted"] + row["inconclusive"] == pytest.approx(1)
    assert not list(tmp_path.iterdir())


def test_an_adaptive_grid_follows_the_minimum(materials: Path, tmp_path: Path):
    out = tmp_path / "adaptive"
    assert run(flags(materials, "--out", str(out))) == 0
    study = StudyDirectory.open(out)
    rates = {method: sorted({c.lr for c in study.plan.cells if c.arm.method == method}) for method in ("lora", "full")}
    assert all(len(own) >= 3 for own in rates.values())
    # It never asked for the same cell twice, and every cell that it asked for was trained once.
    cells = [cell.cell for cell in study.plan.cells]
    assert len(cells) == len(set(cells)) == sum(len(bank.cells) for bank in study.plan.banks)


def test_a_finished_study_grows_by_a_seed_and_trains_that_alone(finished: Path, tmp_path: Path):
    out = tmp_path / "grown"
    shutil.copytree(finished, out)
    before = records(out)
    assert run(["study", "--resume", str(out), "--seeds", "4"]) == 0
    after = records(out)
    assert {cell: after[cell] for cell in before} == before
    assert len(after) == len(before) * 4 // 3
    study = StudyDirectory.open(out)
    assert {planned.seed for planned in study.plan.cells if planned.cell not in before} == {3}
    assert study.spec.questions[0].seeds == (0, 1, 2, 3)


def test_the_invariance_holds_bitwise_in_a_study(materials: Path, tmp_path: Path):
    out = tmp_path / "invariance"
    given = flags(materials, "--lr", "4e-3", "--grid", "fixed", "--out", str(out), protocol="invariance")
    given[given.index("--seeds") + 1] = "1"
    assert run(given) == 0
    (finding,) = findings(out)
    assert (finding["claim"], finding["verdict"], finding["estimate"]) == ("C1", "supported", 0.0)
    # Two references, and nine pairs of (p, q) in three ways.
    assert len(StudyDirectory.open(out).plan.banks) == 29
    assert (out / "cells.parquet").is_file()


def test_dynamics_are_kept_with_the_cells(materials: Path, tmp_path: Path):
    out = tmp_path / "dynamics"
    given = flags(materials, "--lr", "1e-2", "--grid", "fixed", "--out", str(out), protocol="dynamics")
    given[given.index("--rank") + 1] = "1,4"
    assert run(given) == 0
    for record in records(out).values():
        assert record.dynamics.norm_b[0] == 0.0 < record.dynamics.norm_b[-1]
        assert 0 < record.dynamics.kernel_error < 2
        assert len(record.dynamics.norm_a) == len(record.steps)
    (finding,) = findings(out)
    assert (finding["claim"], finding["verdict"]) == ("C11", "inconclusive")
    assert "rank 64 or more" in finding["settles"]


def test_fidelity_measures_what_is_faithful_and_judges_it_against_the_usual(
    materials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "fidelity"
    given = [*flags(materials, "--fidelity-at", "1,4", *RATES, "--out", str(out), protocol="fidelity")]
    given[given.index("--dtype") + 1] = "bf16"
    assert run(given) == 0
    study = StudyDirectory.open(out)
    arms = {cell.cell: cell.arm for cell in study.plan.cells}
    assert sorted({arm.label for arm in arms.values()}) == ["full", "full nearest", "r4", "r4 add"]
    # Adapters of one arithmetic share their banks; a full fine-tuning has its own.
    assert sorted(len(bank.cells) for bank in study.plan.banks) == [1] * 30 + [15, 15]
    for cell, record in records(out).items():
        found = {(row.step, row.arithmetic) for row in record.fidelity}
        names = {"lora": ADAPTED, "full": ("copy nearest", "copy stochastic")}[arms[cell].method]
        assert found == ({(step, name) for step in (1, 4) for name in names} if not arms[cell].variant else set())
        assert all(row.sequences == 4 and row.low <= row.fidelity <= row.high for row in record.fidelity)
    twins = {label: {c.lr for c in study.plan.cells if c.arm.label == label} for label in ("r4", "r4 add")}
    assert twins["r4"] == twins["r4 add"]
    # At the first step B is zero, so that both arithmetics take the same one: what differs is the forward.
    losses = {(c.arm.label, c.lr, c.seed): study.read_record(c.cell) for c in study.plan.cells}
    for (label, lr, seed), record in losses.items():
        if label == "r4":
            usual = losses["r4 add", lr, seed]
            assert record.validation[0] == usual.validation[0]
            assert record.validation[1:] != usual.validation[1:]
    assert [finding["claim"] for finding in findings(out)] == ["C13", "C13b", "C13c", "C13d", "C13e"]
    capsys.readouterr()
    run(["diagnose", str(out), "--json"])
    # Its copies to nearest are what the study is about, and no fault.
    assert "update-swallowed" not in {symptom["rule"] for symptom in json.loads(capsys.readouterr().out)["symptoms"]}
    report = (out / "report.html").read_text()
    assert "merged stochastic" in report
    assert {"1-fidelity-forward-r4.png", "1-fidelity-share-rates.png", "1-fidelity-rates.png"} <= set(
        os.listdir(out / "figures")
    )


ADAPTED = ("accumulator", "add", "addmm", "merged nearest", "merged stochastic")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--dtype", "fp32"), "fp32 swallows nothing; give --dtype bf16"),
        (("--dtype", "bf16", "--fidelity-at", "5"), "no run has a step 5; give steps from 1 to 4"),
    ],
)
def test_fidelity_says_what_it_needs(
    materials: Path, more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
):
    given = flags(materials, protocol="fidelity")
    place = given.index("--dtype")
    assert run([*given[:place], *given[place + 2 :], *more]) == 2
    assert said in capsys.readouterr().err
    assert run([*flags(materials, "--fidelity-at", "1")]) == 2
    assert "--fidelity-at: is for fidelity" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--steps", "4"), "--steps: a capacity study goes by --epochs"),
        (("--lr", "1e-2"), "--data: what an example"),
        (("--data", "micro-facts"), "--lr: is missing; a capacity study chooses by what was stored"),
    ],
)
def test_capacity_says_what_it_needs(more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]):
    given = ["study", "capacity", "--model", "nano", *more]
    assert run(given if "--data" in more else [*given, "--data", "train.jsonl"]) == 2
    assert said in capsys.readouterr().err
