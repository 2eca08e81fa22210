"""The adaptive grid against the paper's on one question: LR* of both, and what each of them trains.

The question is where the best learning rates of LoRA and of full fine-tuning lie on `micro`. The paper's guide sweeps
six rates at every rank from 1 up; the adaptive profile takes two ranks (the rate hardly depends on it, which is C3) and
follows the minimum. Both are ordinary studies; cell-steps are counted from the steps that every cell logged.

    python benchmarks/grids.py
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from beside.envelope import write_result
from beside.turns import parse, parser_of, say

from lowregret.specs import DataSpec, GridSpec, HardwareSpec, ModelSpec, QuestionSpec, StudySpec, TrainSpec
from lowregret.specs.codec import to_toml
from lowregret.store.study import StudyDirectory
from lowregret.studies.best_rate import log_best_rates
from lowregret.studies.reading import outcomes_of
from lowregret.studies.students_t import t_interval
from lowregret.studies.surface import Refused, surfaces

TOKENS = 32
"""Of a sentence of the data."""


def main() -> None:
    """Run both studies (or read finished ones) and write the table."""
    started = time.perf_counter()
    parser = parser_of(__doc__, data="markov", short={})
    # Of each of the two workers.
    parser.set_defaults(model="micro", threads=1)
    parser.add_argument("--out", type=Path, default=None, help="keep the studies here (a temporary folder)")
    parser.add_argument("--steps", type=int, default=60, help="of every cell (60)")
    arguments = parse(parser, {})
    folder = arguments.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    profiles: dict[str, dict[str, Any]] = {}
    for name in ("paper", "adaptive"):
        say(f"grids: the {name} grid")
        profiles[name] = _profile(name, folder, _spec(name, arguments.steps))
    shared = {arm: rate for arm, rate in profiles["adaptive"]["best"].items() if arm in profiles["paper"]["best"]}
    medians = {name: {key: own[key] for key in ("cells", "cell_steps")} for name, own in profiles.items()}
    checks = {
        "cell_steps_ratio": profiles["adaptive"]["cell_steps"] / profiles["paper"]["cell_steps"],
        "intervals_meet": {arm: _meet(rate, profiles["paper"]["best"][arm]) for arm, rate in shared.items()},
    }
    write_result(
        "grids",
        arguments=arguments,
        question="What does the adaptive grid train for the same answer as the paper's?",
        rows=[{"contender": name, "format": "fp32", "measurements": 1} for name in profiles],
        medians=medians,
        answers={},
        checks=checks,
        raw=profiles,
        started=started,
    )
    print(json.dumps({"medians": medians, "checks": checks}, indent=1))


def _spec(name: str, steps: int) -> StudySpec:
    grid = GridSpec(start=3.5e-3, full_start=1.5e-3)
    question = QuestionSpec(
        protocol="rank",
        data=DataSpec(source="markov", limit=2000, validation_size=64, test_size=128),
        train=TrainSpec(steps=steps, batch_size=8, eval_every=20, eval_early=False, num_samples=0),
        ranks=(4, 64) if name == "adaptive" else tuple(2**k for k in range(8)),
        grid=grid if name == "adaptive" else replace(grid, kind="paper"),
    )
    hardware = HardwareSpec(device="cpu", dtype="fp32", threads=1)
    return StudySpec(name=name, model=ModelSpec(source="micro"), questions=(question,), hardware=hardware, workers=2)


def _profile(name: str, folder: Path, spec: StudySpec) -> dict[str, Any]:
    file, out = folder / f"{name}.toml", folder / name
    file.write_text(to_toml(spec))
    asked = ["--resume", str(out)] if (out / "study.toml").is_file() else [str(file), "--out", str(out)]
    subprocess.run(
        [sys.executable, "-m", "lowregret", "study", *asked, "--json"], check=True, stdout=subprocess.DEVNULL
    )
    study = StudyDirectory.open(out)
    cells = {cell.cell: cell for cell in study.plan.cells}
    steps = sum(study.read_record(cell).tokens / (TOKENS * planned.arm.batch_size) for cell, planned in cells.items())
    best: dict[str, list[float] | None] = {}
    for arm, surface in surfaces(outcomes_of(study, 0)).items():
        try:
            logs = log_best_rates(surface)
            best[arm.label] = [math.exp(value) for value in (float(logs.mean()), *t_interval(logs))]
        except Refused:
            best[arm.label] = None
    return {"cells": len(cells), "cell_steps": steps, "best": best}


def _meet(one: list[float] | None, other: list[float] | None) -> bool | None:
    """Whether two intervals have a point in common; None where one was refused."""
    return None if one is None or other is None else one[1] <= other[2] and other[1] <= one[2]


if __name__ == "__main__":
    main()
