"""`lowregret diagnose` on runs of seconds: what it prints, its exit code, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lowregret.cli.main import run
from lowregret.store import RunDirectory


@pytest.fixture(scope="module")
def good(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing serious: three steps are few, and that is a warning."""
    out = tmp_path_factory.mktemp("diagnosed") / "run"
    assert run(["sft", *settings, "--rank", "1,4", "--lr", "3e-3", "--out", str(out)]) == 0
    return out


def test_a_run_without_serious_failures_exits_with_0(good: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["diagnose", str(good)]) == 0
    printed = capsys.readouterr().out
    assert "few-steps" in printed
    assert "remedy: " in printed
    assert "checked: diverged, loss-rose," in printed
    assert "not checked" not in printed


def test_a_run_that_diverged_exits_with_1(
    settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = str(tmp_path / "run")
    assert run(["sft", *settings, "--rank", "4", "--lr", "1e25", "--out", out]) == 1
    capsys.readouterr()
    assert run(["diagnose", out, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["symptoms"][0]["rule"] == "diverged"
    assert printed["symptoms"][0]["severity"] == "serious"
    assert set(printed) == {"symptoms", "checked", "unchecked"}


def test_nothing_found_is_said_with_what_was_looked_for(
    settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = str(tmp_path / "run")
    assert (
        run(["sft", *settings, "--rank", "4", "--lr", "1e-3", "--steps", "50", "--batch-size", "2", "--out", out]) == 0
    )
    capsys.readouterr()
    assert run(["diagnose", out]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("nothing found\nchecked: ")
    assert "alpha-tied-to-rank" in printed


def test_a_run_whose_base_is_gone_is_read_by_fewer_rules(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    alone = tmp_path / "run"
    shutil.copytree(good, alone)
    source = RunDirectory.open(good).spec.model.source
    for name in ("spec.toml", "plan.toml"):
        (alone / name).write_text((alone / name).read_text().replace(source, str(tmp_path / "gone")))
    assert run(["diagnose", str(alone)]) == 0
    printed = capsys.readouterr()
    assert "fewer rules apply" in printed.err
    assert "not checked: lr-at-full-scale (the base model is not at hand)" in printed.out


def test_a_run_that_was_trained_on_other_weights_is_not_judged_by_these(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    changed = tmp_path / "run"
    shutil.copytree(good, changed)
    report = json.loads((changed / "data.json").read_text())
    (changed / "data.json").write_text(json.dumps({**report, "model_hash": "0" * 64}))
    assert run(["diagnose", str(changed)]) == 0
    assert "has changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["none", "empty"])
def test_what_is_no_run_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    assert run(["diagnose", str(tmp_path / name)]) == 2
    assert "is neither a run nor a study directory" in capsys.readouterr().err


def test_a_log_that_was_edited_is_refused(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torn = tmp_path / "run"
    shutil.copytree(good, torn)
    lines = (torn / "metrics.jsonl").read_text().splitlines()
    (torn / "metrics.jsonl").write_text("\n".join(["not a row", *lines]) + "\n")
    assert run(["diagnose", str(torn)]) == 2
    assert "metrics.jsonl: line 1 is not a row" in capsys.readouterr().err


def test_it_loads_no_torch(good: Path):
    script = (
        "import sys\nfrom lowregret.cli.main import run\n"
        f"assert run(['diagnose', {str(good)!r}]) == 0\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
