"""A sweep of 24 adapters, six learning rates by ranks 4, 8, 16 and 32: one `lowregret study` beside 24 runs of TRL.

    python benchmarks/study_vs_trl.py --data gsm8k/train.jsonl

Ours is measured whole: one command from its start to its report, with loading, tokenising, every cell's training, its
held-out loss, its adapter and its record. The peer is one process a cell, as a sweep script would start it: imports,
model, trainer, the same number of steps at the same batch, held-out loss over as many examples, adapter saved. **Only
`--peer-runs` of the 24 are run; the peer's total is their median times 24.** Both sides in their fastest number format.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from beside.envelope import Answer, write_result
from beside.formats import best
from beside.ours import training_job
from beside.trl_sft import FORMATS, trainer_of
from beside.turns import give, in_process_of_its_own, median, parse, parser_of, peak_mib, say, take_turns

SHORT = {"peer_runs": 2, "steps": 2, "batch_size": 2, "held_out": 2}
RANKS = (4, 8, 16, 32)
RATES = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3)
CELLS = len(RANKS) * len(RATES)
PEER_CELLS = ((16, 4e-4), (4, 2e-4), (32, 8e-4), (8, 4e-4), (16, 1e-4))
"""Rank and rate of the runs that are measured, in this order."""


def main() -> None:
    """Ours whole, some runs of the peer."""
    started = time.perf_counter()
    parser = parser_of(__doc__, data="reasoning-gym:number_sorting", short=SHORT)
    parser.add_argument("--steps", type=int, default=4, help="steps of every cell (4)")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences a step (4)")
    parser.add_argument("--held-out", type=int, default=8, help="validation examples, and as many test examples (8)")
    parser.add_argument(
        "--peer-runs", type=int, default=3, help=f"runs of TRL that are measured, to {len(PEER_CELLS)} (3)"
    )
    arguments = parse(parser, SHORT)
    if arguments.child:
        give(one_run(json.loads(arguments.job.read_text())))
        return
    fastest, race = best(arguments, "lora")
    with tempfile.TemporaryDirectory() as scratch:
        job = training_job(arguments, "lora", Path(scratch))
        # Of the same data; whose examples they are decides nothing about time.
        job |= {"setting": fastest["trl"], "held_out": held_out(job, 2 * arguments.held_out)}
        job_file = Path(scratch) / "job.json"
        say(f"study_vs_trl: {CELLS} cells in one study")
        ours = study(arguments, fastest["ours"], Path(scratch) / "study")
        say(f"study_vs_trl: took {ours['seconds']:.0f} s")
        cells = {f"trl r{rank} at {lr:g}": (rank, lr) for rank, lr in PEER_CELLS[: arguments.peer_runs]}

        def act(name: str) -> dict[str, Any]:
            rank, lr = cells[name]
            job_file.write_text(json.dumps(job | {"rank": rank, "lr": lr, "out": str(Path(scratch) / "trl")}))
            began = time.perf_counter()
            command = [__file__, "--child", name, "--job", str(job_file)]
            found = in_process_of_its_own(command, name, threads=arguments.threads)
            return found | {"seconds": time.perf_counter() - began}

        runs = take_turns("study_vs_trl", list(cells), 1, act, lambda run: f"{run['seconds']:.1f} s")
    own = [run["seconds"] for (run,) in runs.values()]
    per_run = median(own)
    peer = CELLS * per_run
    how = f"{CELLS} times the median of {len(own)} runs"
    result = write_result(
        "study_vs_trl",
        arguments=arguments,
        question=f"How long does a study of {CELLS} cells, learning rate by rank, take?",
        rows=[
            {"contender": "study", "format": fastest["ours"], "measurements": 1, "cells": ours["cells"]},
            {"contender": "trl", "format": FORMATS[fastest["trl"]], "measurements": len(own), "cells": len(own)},
        ],
        medians={
            "study": {"seconds": ours["seconds"], "seconds_a_cell": ours["seconds"] / CELLS},
            "trl": {"seconds": peer, "seconds_a_cell": per_run},
        },
        answers={
            "study24": Answer(
                ours=3600 * CELLS / ours["seconds"],
                peer=3600 * CELLS / peer,
                unit="cells/h",
                ours_was=f"one lowregret study, {fastest['ours']}, measured whole",
                peer_was=f"{CELLS} runs of TRL + PEFT, {FORMATS[fastest['trl']]}: {how}",
            )
        },
        checks={"finished_cells": ours["cells"], "race_of_formats": race},
        raw={"study": ours, "trl": runs},
        started=started,
    )
    print(json.dumps({key: result[key] for key in ("answers", "medians")}, indent=1))


def held_out(job: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """As many rows as ours is evaluated on."""
    return [job["rows"][index % len(job["rows"])] for index in range(number)]


def study(arguments: argparse.Namespace, number_format: str, out: Path) -> dict[str, Any]:
    """The command from its start to its end."""
    from lowregret.store.study import StudyDirectory

    command = [
        *("-m", "lowregret", "study", "early", "--model", arguments.model, "--data", arguments.data),
        *("--rank", ",".join(map(str, RANKS)), "--grid", "fixed", "--lr", ",".join(f"{rate:g}" for rate in RATES)),
        *("--steps", str(arguments.steps), "--batch-size", str(arguments.batch_size), "--seeds", "1", "--no-curve"),
        *("--validation-size", str(arguments.held_out), "--test-size", str(arguments.held_out), "--limit", "1000"),
        *("--dtype", number_format, "--threads", str(arguments.threads), "--out", str(out), "--json"),
    ]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"the study failed:\n{done.stderr[-3000:]}")
    directory = StudyDirectory.open(out)
    cells = [cell.cell for cell in directory.plan.cells if directory.has_record(cell.cell)]
    assert len(cells) == CELLS, f"{len(cells)} cells were trained"
    records = [directory.read_record(cell) for cell in cells]
    return {
        "seconds": seconds,
        "cells": len(cells),
        "banks": len(directory.plan.banks),
        "seconds_training": sum(record.seconds for record in records),
        "tokens": sum(record.tokens for record in records),
    }


def one_run(job: dict[str, Any]) -> dict[str, Any]:
    """One cell of the peer's sweep, in this process."""
    import torch

    torch.set_num_threads(job["threads"])
    steps: list[float] = []
    trainer = trainer_of(job, job["setting"], Path(job["out"]), steps)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model(job["out"])
    return {"seconds_of_steps": steps, "held_out_loss": loss, "peak_mib": peak_mib()}


if __name__ == "__main__":
    main()
