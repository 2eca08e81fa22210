"""`lowregret plan` says what a run would do, and never loads torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lowregret.cli.main import run


def test_the_plan_is_tables_or_one_json_object(settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    assert run(["plan", *settings, "--rank", "1,4"]) == 0
    assert "What trains" in capsys.readouterr().out
    assert run(["plan", *settings, "--rank", "1,4", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [slot["name"] for slot in plan["slots"]] == ["r1", "r4"]
    assert plan["steps"] == 3
    assert all(derived["reason"] for derived in plan["derived"])


def test_a_number_of_tokens_stands_for_data(model_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["plan", "--model", str(model_folder), "--tokens", "100000", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["approximate"] is True
    assert plan["completion_tokens_per_slot"] == pytest.approx(100_000, rel=0.05)


def test_what_does_not_fit_is_an_error_of_one_line(model_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["plan", "--model", str(model_folder), "--tokens", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: tokens: 0 must be at least 1")


def test_planning_loads_no_torch(settings: tuple[str, ...]):
    script = (
        "import sys\n"
        "from lowregret.cli.main import run\n"
        f"assert run(['plan', *{list(settings)!r}, '--json']) == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["steps"] == 3
