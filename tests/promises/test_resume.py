"""kill -9 at any moment, then resume: series and weights bitwise equal to the run that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_folder import tiny_model_folder, write_questions

STEPS = 24


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder and a data file, with a cache beside them, shared by every run of this file."""
    folder = tmp_path_factory.mktemp("resume")
    tiny_model_folder(folder / "model")
    write_questions(folder / "data.jsonl", 80)
    return folder


def start(materials: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "LOWREGRET_CACHE": str(materials / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lowregret", *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def sft_arguments(materials: Path, out: Path) -> list[str]:
    return [
        *("sft", "--model", str(materials / "model"), "--data", str(materials / "data.jsonl")),
        *("--rank", "1,4", "--lr", "3e-3", "--full", "--full-lr", "1e-4", "--dtype", "bf16", "--device", "cpu"),
        *("--steps", str(STEPS), "--batch-size", "3", "--eval-every", "6", "--checkpoint-every", "2"),
        *("--out", str(out)),
    ]


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == expected, errors
    return errors


def series(run: Path) -> list[dict[str, object]]:
    """Every logged number of a run but the times."""
    rows = []
    for log in ("metrics.jsonl", "evals.jsonl"):
        for line in (run / log).read_text().splitlines():
            row = json.loads(line)
            row.pop("seconds", None)
            rows.append(row)
    return rows


def weights(run: Path) -> dict[str, torch.Tensor]:
    last = run / "checkpoints" / f"step-{STEPS:06d}"
    return {f"{f.name}:{k}": v for f in sorted(last.glob("*.safetensors")) for k, v in load_file(f).items()}


@pytest.fixture(scope="module")
def uninterrupted(materials: Path) -> Path:
    out = materials / "uninterrupted"
    finish(start(materials, *sft_arguments(materials, out)))
    assert len(series(out)) > 3 * STEPS
    return out


def assert_same(run: Path, reference: Path) -> None:
    assert series(run) == series(reference)
    mine, theirs = weights(run), weights(reference)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def kill_points(number: int) -> list[int]:
    """Metric lines after which the process is killed: anywhere in the run, before the first checkpoint too."""
    return random.Random(number).sample(range(1, 3 * STEPS - 3), number)


def killed_and_resumed(materials: Path, out: Path, lines: int) -> None:
    process = start(materials, *sft_arguments(materials, out))
    log = out / "metrics.jsonl"
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < lines):
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    finish(start(materials, "sft", "--resume", str(out)))


@pytest.mark.parametrize("lines", kill_points(5))
def test_killed_runs_resume_bitwise(materials: Path, uninterrupted: Path, tmp_path: Path, lines: int) -> None:
    killed_and_resumed(materials, tmp_path / "run", lines)
    assert_same(tmp_path / "run", uninterrupted)


@pytest.mark.long
@pytest.mark.parametrize("lines", kill_points(20))
def test_twenty_killed_runs_resume_bitwise(materials: Path, uninterrupted: Path, tmp_path: Path, lines: int) -> None:
    killed_and_resumed(materials, tmp_path / "run", lines)
    assert_same(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_names_the_resume_command(
    materials: Path, uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    process = start(materials, *sft_arguments(materials, out))
    while process.poll() is None and (not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text()):
        time.sleep(0.002)
    process.send_signal(number)
    errors = finish(process, expected=130)
    assert f"lowregret sft --resume {out}" in " ".join(errors.split())
    finish(start(materials, "sft", "--resume", str(out)))
    assert_same(out, uninterrupted)


def test_a_torn_checkpoint_is_skipped_with_a_warning_for_the_one_before(
    materials: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(materials, *sft_arguments(materials, out))
    while process.poll() is None and len(list((out / "checkpoints").glob("step-*"))) < 2:
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)
    newest = max((out / "checkpoints").glob("step-*"))
    victim = newest / "r4.safetensors"
    victim.write_bytes(victim.read_bytes()[:-100])
    errors = finish(start(materials, "sft", "--resume", str(out)))
    assert newest.name in errors
    assert "checksum" in errors
    assert_same(out, uninterrupted)


def test_resuming_a_finished_run_says_so_and_exits_0(materials: Path, uninterrupted: Path) -> None:
    assert "finished" in finish(start(materials, "sft", "--resume", str(uninterrupted)))


def test_a_resume_with_a_changed_spec_is_refused(materials: Path, uninterrupted: Path) -> None:
    errors = finish(start(materials, "sft", "--resume", str(uninterrupted), "--batch-size", "5"), expected=2)
    assert "batch" in errors
    assert "Traceback" not in errors


def test_an_output_folder_that_holds_a_run_is_refused(materials: Path, uninterrupted: Path) -> None:
    errors = finish(start(materials, *sft_arguments(materials, uninterrupted)), expected=2)
    assert str(uninterrupted.name) in errors
    assert "Traceback" not in errors
