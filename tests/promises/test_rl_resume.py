"""kill -9 in the middle of RL, then resume: rewards, accuracies and weights bitwise those of the run left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_folder import tiny_model_folder, write_questions

STEPS = 10


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rl-resume")
    tiny_model_folder(folder / "model")
    write_questions(folder / "data.jsonl", 80)
    (folder / "reward.py").write_text(
        "def ascii_first(*, question, answer, completion, entry):\n    return float(completion[:1].isascii())\n"
    )
    return folder


def start(materials: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "LOWREGRET_CACHE": str(materials / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lowregret", *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def arguments(materials: Path, out: Path) -> list[str]:
    return [
        *("rl", "--model", str(materials / "model"), "--data", str(materials / "data.jsonl")),
        *("--reward", f"{materials / 'reward.py'}:ascii_first", "--group", "4", "--max-new-tokens", "4"),
        *("--rank", "1,4", "--lr", "3e-3", "--full", "--full-lr", "1e-3", "--dtype", "bf16", "--device", "cpu"),
        *("--steps", str(STEPS), "--batch-size", "3", "--eval-every", "5", "--checkpoint-every", "2"),
        *("--validation-size", "4", "--test-size", "4", "--rows", "8", "--out", str(out)),
    ]


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def series(run: Path) -> list[dict[str, object]]:
    """Every logged line but for the times."""
    rows = []
    for log in ("policy.jsonl", "accuracy.jsonl", "rollouts.jsonl"):
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
    finish(start(materials, *arguments(materials, out)))
    assert len(series(out)) > 3 * STEPS
    return out


@pytest.mark.parametrize("lines", [1, 7, 20])
def test_killed_runs_resume_bitwise(materials: Path, uninterrupted: Path, tmp_path: Path, lines: int) -> None:
    out = tmp_path / "run"
    process = start(materials, *arguments(materials, out))
    log = out / "policy.jsonl"
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < lines):
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    finish(start(materials, "rl", "--resume", str(out)))
    assert series(out) == series(uninterrupted)
    mine, theirs = weights(out), weights(uninterrupted)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
