"""Which number format each side is fastest in on this machine: a short race, kept as `formats.json`.

A processor without bf16 instructions multiplies bf16 several times slower than fp32, one with AMX several times faster,
so no benchmark may fix the format for either side. Every script that trains asks `best`, which reads the race that was
run on this machine with these versions, or runs it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from beside.envelope import ROOT, commit, same_device, write_result
from beside.ours import training_job
from beside.sft import run_child
from beside.turns import TooSlow, clock, in_process_of_its_own, median, say

SCRIPT = ROOT / "benchmarks" / "formats.py"
CANDIDATES = {"ours": ("fp32", "bf16"), "trl": ("fp32", "autocast", "bf16")}
ROWS, STEPS, LONGEST = 2, 3, 96
"""Of the race: short documents and few steps, since only the order counts."""
PATIENCE = 2.0
"""Times the fastest contender's whole process that a slower one may take before it is stopped."""


def best(arguments: argparse.Namespace, method: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The fastest format of each side, and the race's numbers.

    Args:
        method: `lora` or `full`. In a short set the race of adapters stands in for that of full fine-tuning.
    """
    raced = _kept(arguments, method) or race(arguments, ("lora",) if arguments.short else ("lora", "full"))
    method = method if method in raced["checks"]["fastest"] else "lora"
    return raced["checks"]["fastest"][method], {"method": method, **raced["medians"]}


def _kept(arguments: argparse.Namespace, method: str) -> dict[str, Any] | None:
    """The race that was run of this commit on this machine, if there is one that will do."""
    file = arguments.results / "formats.json"
    raced = json.loads(file.read_text()) if file.is_file() else {}
    if "checks" not in raced or ("smoke" in raced and not arguments.smoke):
        return None
    if not same_device(raced, threads=arguments.threads) or raced["commit"]["id"] != commit()["id"]:
        return None
    return raced if arguments.short or method in raced["checks"]["fastest"] else None


def race(arguments: argparse.Namespace, methods: tuple[str, ...]) -> dict[str, Any]:
    """Run it and write `formats.json`."""
    started = time.perf_counter()
    kept = ("model", "data", "threads", "short", "smoke", "results")
    settings = {name: getattr(arguments, name) for name in kept}
    own = argparse.Namespace(**settings, steps=STEPS, batch_size=ROWS, longest=LONGEST)
    raw: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        job = training_job(own, "lora", Path(scratch))
        for row in job["rows"]:
            # The end of a document, where its completion is.
            row["input_ids"], row["completion_mask"] = row["input_ids"][-LONGEST:], row["completion_mask"][-LONGEST:]
        job_file = Path(scratch) / "job.json"
        job_file.write_text(json.dumps(job))
        for method in methods:
            fastest = float("inf")
            for side, formats in CANDIDATES.items():
                for number_format in formats:
                    name = f"{side}-{method}-{number_format}"
                    began = time.perf_counter()
                    # The patience is with one side: ours may well be faster in every format.
                    limit = None if number_format == formats[0] else PATIENCE * fastest
                    raw[name] = _turn(name, job_file, own.threads, limit)
                    took = time.perf_counter() - began
                    fastest = took if number_format == formats[0] else min(fastest, took)
                    say(f"number formats: {name} {_said(raw[name])}")
    medians = {name: {"seconds_a_step": median(t["seconds"][1:])} for name, t in raw.items() if "seconds" in t}
    found = {
        method: {
            side: min(
                (f for f in formats if f"{side}-{method}-{f}" in medians), key=lambda f: _pace(medians, side, method, f)
            )
            for side, formats in CANDIDATES.items()
        }
        for method in methods
    }
    say(f"number formats: {found} after {clock(time.perf_counter() - started)}")
    return write_result(
        "formats",
        arguments=own,
        question="In which number format is each side fastest on this machine?",
        rows=[{"contender": name, "measurements": STEPS - 1} for name in medians],
        medians=medians,
        answers={},
        checks={"fastest": found, "stopped": [name for name in raw if name not in medians]},
        raw=raw,
        started=started,
    )


def _pace(medians: dict[str, dict[str, float]], side: str, method: str, number_format: str) -> float:
    return medians[f"{side}-{method}-{number_format}"]["seconds_a_step"]


def _turn(name: str, job_file: Path, threads: int, limit: float | None) -> dict[str, Any]:
    command = [str(SCRIPT), "--child", f"turn:{name}", "--job", str(job_file)]
    try:
        return in_process_of_its_own(command, name, threads=threads, most_seconds=limit)
    except TooSlow:
        assert limit is not None
        return {"stopped_after_seconds": round(limit, 1)}


def _said(turn: dict[str, Any]) -> str:
    if "seconds" in turn:
        return f"{median(turn['seconds'][1:]):.2f} s a step"
    return f"stopped after {turn['stopped_after_seconds']:.0f} s"


def child(name: str, job_file: Path) -> None:
    """A contender's process."""
    run_child(name, json.loads(job_file.read_text()))
