"""The page of benchmarks is what its results give, and says what was not reached; its scripts can be asked for help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(file.stem for file in BENCHMARKS.glob("*.py"))


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARKS / f"{script}.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def result(key: str, ours: float, peer: float, **changes: Any) -> dict[str, Any]:
    """A complete envelope with one answer."""
    answer = {"ours": ours, "peer": peer, "ratio": ours / peer, "unit": "MiB", "ours_was": "ours", "peer_was": "TRL"}
    return {
        "question": "How much?",
        "script": "benchmarks/made_up.py",
        "setting": {"steps": 3, "set": "short"},
        "rows": [{"contender": "ours-lora-fp32", "format": "fp32", "measurements": 6}],
        "medians": {"ours-lora-fp32": {"tokens_per_second": 120.0}},
        "answers": {key: answer},
        "checks": {"gradient_cosine_bf16_to_fp32": 0.99912},
        "raw": [],
        "versions": {"torch": "2.13.0"},
        "device": {
            "processor": "A processor",
            "vector_features": ["avx2"],
            "bf16_instructions": False,
            "threads": 2,
            "memory_gib": 23.5,
        },
        "commit": {"id": "a" * 40, "dirty": False},
        "date": "2026-01-01T00:00:00+00:00",
        "seconds": 60.0,
        **changes,
    }


def drawn(folder: Path, results: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The summary and the page of some results."""
    (folder / "results").mkdir()
    for name, content in results.items():
        (folder / "results" / f"{name}.json").write_text(json.dumps(content))
    done = run("summary", "--results", folder / "results")
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results" / "summary.json").read_text()), (folder / "RESULTS.md").read_text()


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    done = run("summary", "--check")
    assert done.returncode == 0, done.stderr


def test_a_goal_is_met_in_its_own_direction(tmp_path: Path) -> None:
    less, more = result("sft_memory_cpu", 300.0, 1000.0), result("full_cpu", 300.0, 100.0)
    summary, page = drawn(tmp_path, {"less": less, "more": more})
    assert summary["sft_memory_cpu"]["ratio"] == pytest.approx(0.3)
    assert summary["sft_memory_cpu"]["met"]
    assert not summary["full_cpu"]["met"]
    assert {"ours", "peer", "ratio", "unit", "device", "commit", "goal", "met"} <= summary["full_cpu"].keys()
    rows = {goal: [line for line in page.splitlines() if line.startswith(f"| {goal} |")] for goal in summary}
    assert "| 3 | at least 3.5 | **not reached** |" in rows["full_cpu"][0]
    assert "| 0.3 | at most 0.4 | yes |" in rows["sft_memory_cpu"][0]
    assert "| grpo_step |" in page
    assert "| not measured |" in page
    assert "0.9991" in page


def test_what_is_no_result_is_named_and_left_out(tmp_path: Path) -> None:
    incomplete = {key: value for key, value in result("full_cpu", 4.0, 1.0).items() if key != "commit"}
    smoke = result("sft_lora_cpu", 4.0, 1.0, smoke=True)
    summary, page = drawn(tmp_path, {"incomplete": incomplete, "smoke": smoke, "old": {"tokens": 3}})
    assert summary == {}
    assert "`incomplete.json`: it has no commit" in page
    assert "`smoke.json`: it is of a smoke test" in page
    assert "`old.json`: it was measured before" in page


def test_a_page_that_was_edited_is_found_out(tmp_path: Path) -> None:
    drawn(tmp_path, {"more": result("full_cpu", 400.0, 100.0)})
    page = tmp_path / "RESULTS.md"
    page.write_text(page.read_text().replace("| 4 |", "| 5 |"))
    done = run("summary", "--results", tmp_path / "results", "--check")
    assert done.returncode == 1
    assert "RESULTS.md" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "python benchmarks/" in done.stdout
