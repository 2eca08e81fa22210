"""A run that measures forward fidelity: it trains as one that does not, and resumes to the same log."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lowregret.cli.main import run
from lowregret.specs import RunSpec
from lowregret.specs.codec import read_toml, to_toml
from lowregret.store import MetricRow, RunDirectory
from tiny_folder import tiny_model_folder, write_questions

STEPS, AT = 6, (1, 5, 6)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters and full fine-tuning in bf16, without measuring and with it."""
    folder = tmp_path_factory.mktemp("fidelity")
    tiny_model_folder(folder / "model")
    write_questions(folder / "data.jsonl", 80)
    flags = [
        *("sft", "--model", str(folder / "model"), "--data", str(folder / "data.jsonl"), "--rank", "1,4"),
        *("--lr", "3e-3", "--full", "--full-lr", "1e-4", "--steps", str(STEPS), "--batch-size", "4"),
        *(
            "--dtype",
            "bf16",
            "--device",
            "cpu",
            "--validation-size",
            "8",
            "--test-size",
            "8",
            "--checkpoint-every",
            "2",
        ),
    ]
    assert run([*flags, "--out", str(folder / "plain")]) == 0
    assert run(["sft", str(spec_file(folder)), "--out", str(folder / "measuring")]) == 0
    return folder


def spec_file(folder: Path, dtype: str = "bf16", at: tuple[int, ...] = AT) -> Path:
    """The plain run's spec with steps to measure after."""
    spec = read_toml(RunSpec, folder / "plain" / "spec.toml")
    hardware = replace(spec.hardware, dtype=dtype)  # pyright: ignore[reportArgumentType]
    spec = replace(spec, train=replace(spec.train, fidelity_at=at), hardware=hardware)
    file = folder / f"{dtype}-{len(at)}.toml"
    file.write_text(to_toml(spec))
    return file


def metrics(folder: Path) -> list[MetricRow]:
    return [row.untimed() for row in RunDirectory.open(folder).read_metrics()]


def test_every_live_slot_is_measured_after_the_steps_asked_for(finished: Path):
    rows = RunDirectory.open(finished / "measuring").read_fidelity()
    assert {row.step for row in rows} == set(AT)
    by_slot = {slot: [row.arithmetic for row in rows if row.slot == slot] for slot in ("r1", "r4", "full")}
    assert {slot: len(own) for slot, own in by_slot.items()} == {"r1": 15, "r4": 15, "full": 6}
    assert RunDirectory.open(finished / "plain").read_fidelity() == ()


def test_measuring_changes_no_step(finished: Path):
    assert metrics(finished / "measuring") == metrics(finished / "plain")
    evals = [RunDirectory.open(finished / name).read_evals() for name in ("measuring", "plain")]
    assert [row.untimed() for row in evals[0]] == [row.untimed() for row in evals[1]]


def test_a_run_that_was_killed_logs_the_same(finished: Path, tmp_path: Path):
    again = tmp_path / "again"
    shutil.copytree(finished / "measuring", again)
    (again / "summary.json").unlink()
    shutil.rmtree(max((again / "checkpoints").iterdir()))
    assert run(["sft", "--resume", str(again)]) == 0
    assert RunDirectory.open(again).read_fidelity() == RunDirectory.open(finished / "measuring").read_fidelity()
    assert metrics(again) == metrics(finished / "measuring")


@pytest.mark.parametrize(
    ("dtype", "at", "said"),
    [
        ("fp32", (1,), "train.fidelity_at: fp32 swallows nothing, so there is nothing to measure; give --dtype bf16"),
        ("bf16", (1, STEPS + 1), f"train.fidelity_at: there is no step {STEPS + 1} in a run of {STEPS}"),
        ("bf16", (0,), "train.fidelity_at: 0 must be at least 1"),
    ],
)
def test_what_can_not_be_measured_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, at: tuple[int, ...], said: str
):
    assert run(["sft", str(spec_file(finished, dtype, at)), "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
