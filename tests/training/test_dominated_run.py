"""A run that stops dominated slots: it says so everywhere, leaves the others alone, and resumes to the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lowregret.cli.main import run
from lowregret.specs import RunSpec
from lowregret.specs.codec import read_toml, to_toml
from lowregret.store import RunDirectory
from lowregret.store.listing import list_runs
from tiny_folder import tiny_model_folder, write_questions

SLOW, GOOD, STEPS = "r4-lr1e-9", "r4-lr1e-2", 12


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three rates, of which the lowest learns nothing; and beside it the same without the rule."""
    folder = tmp_path_factory.mktemp("dominated")
    tiny_model_folder(folder / "model")
    write_questions(folder / "data.jsonl", 80)
    flags = [
        *("sft", "--model", str(folder / "model"), "--data", str(folder / "data.jsonl"), "--rank", "4"),
        *("--lr", "1e-9,3e-3,1e-2", "--steps", str(STEPS), "--batch-size", "4", "--eval-every", "4", "--dtype", "fp32"),
        *("--device", "cpu", "--validation-size", "8", "--test-size", "8", "--checkpoint-every", "2"),
    ]
    assert run([*flags, "--out", str(folder / "whole")]) == 0
    spec = read_toml(RunSpec, folder / "whole" / "spec.toml")
    spec = replace(spec, train=replace(spec.train, drop_dominated=10**0.25))
    (folder / "run.toml").write_text(to_toml(spec))
    assert run(["sft", str(folder / "run.toml"), "--out", str(folder / "stopping")]) == 0
    return folder


def losses(folder: Path, slot: str) -> dict[int, float]:
    return {row.step: row.loss for row in RunDirectory.open(folder).read_metrics() if row.slot == slot}


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())["slots"]


def test_it_stops_after_a_third_and_the_others_train_on_as_they_were(finished: Path):
    stopping, whole = finished / "stopping", finished / "whole"
    assert max(losses(stopping, SLOW)) == 4
    assert losses(stopping, GOOD) == pytest.approx(losses(whole, GOOD), rel=1e-5)
    ends = {slot: (end["stopped"], end["diverged"]) for slot, end in summary(stopping).items()}
    assert ends == {SLOW: (True, False), "r4-lr3e-3": (False, False), GOOD: (False, False)}
    assert not any(end["stopped"] for end in summary(whole).values())


def test_a_run_that_is_resumed_after_the_stop_ends_the_same(finished: Path, tmp_path: Path):
    again = tmp_path / "again"
    shutil.copytree(finished / "stopping", again)
    (again / "summary.json").unlink()
    for folder in (again / "checkpoints").iterdir():
        if folder.name.endswith(str(STEPS)):
            shutil.rmtree(folder)
    assert run(["sft", "--resume", str(again)]) == 0
    assert summary(again) == summary(finished / "stopping")
    assert losses(again, GOOD) == losses(finished / "stopping", GOOD)


def test_it_is_called_stopped_and_not_diverged(finished: Path, capsys: pytest.CaptureFixture[str]):
    folder = finished / "stopping"
    assert run(["export", str(folder), "--slot", SLOW, "--out", str(finished / "adapter")]) == 2
    assert "was stopped early" in capsys.readouterr().err
    run(["diagnose", str(folder), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert "diverged" not in json.dumps(found["symptoms"])
    (entry,) = [entry for entry in list_runs(finished) if entry.path == folder]
    assert entry.best_slot != SLOW
    assert "stopped early" in (folder / "report.html").read_text()
