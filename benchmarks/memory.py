"""Is the planner's peak memory an upper bound, and a tight one? Predicted beside measured, one process a setting.

    python benchmarks/memory.py --data gsm8k/train.jsonl

Every setting is a real `lowregret sft`, evaluation included; its peak is what the system counted for the process, its
prediction stands in the run's plan.toml. The promise: measured <= predicted <= 1.25 x measured. The steps are enough
for some micro-batch to fill most of its budget, and for freed pages to build up as they do in a longer run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from beside.envelope import write_result
from beside.turns import parse, parser_of, say

from lowregret.specs import ResolvedPlan
from lowregret.specs.codec import read_toml

PROMISE = 1.25

BF16 = ("--dtype", "bf16")
"""Said, because the planner's own choice depends on the processor."""

SETTINGS: dict[str, tuple[str, ...]] = {
    "LoRA r8, bf16": ("--rank", "8", *BF16),
    "LoRA r128, bf16": ("--rank", "128", *BF16),
    "LoRA r1, r8, r64 in one bank": ("--rank", "1,8,64", "--batch-size", "4", *BF16),
    "LoRA r16, 4096 tokens a micro-batch": (
        *("--rank", "16", "--tokens-per-microbatch", "4096", "--batch-size", "17", *BF16),
    ),
    "LoRA r16, 4096 tokens, checkpointing": (
        *("--rank", "16", "--tokens-per-microbatch", "4096", "--batch-size", "17", "--activation-checkpointing", *BF16),
    ),
    "LoRA r16, fp32": ("--rank", "16", "--dtype", "fp32"),
    "LoRA r16 with the unembedding": ("--rank", "16", "--unembed", *BF16),
    "FullFT, bf16": ("--full", *BF16),
    "FullFT matched, bf16": ("--full", "--support", "matched", *BF16),
    "FullFT, fp32, checkpointing": ("--full", "--dtype", "fp32", "--activation-checkpointing"),
}


def main() -> None:
    """Measure every setting and print the table."""
    started = time.perf_counter()
    parser = parser_of(__doc__, data="reasoning-gym:number_sorting", short={})
    parser.add_argument("--steps", type=int, default=16, help="of every run (16)")
    parser.add_argument("--only", help="part of a setting's name")
    parser.add_argument("--device", default="cpu", help="that runs compute on (cpu)")
    arguments = parse(parser, {})
    rows: dict[str, dict[str, float]] = {}
    for name, flags in SETTINGS.items():
        if arguments.only is None or arguments.only in name:
            rows[name] = measure(flags, arguments)
            row = rows[name]
            say(
                f"memory {len(rows)}/{len(SETTINGS)}: {name}: predicted {row['predicted_mib']:.0f} MiB, "
                f"measured {row['measured_mib']:.0f} MiB, ratio {row['ratio']:.2f}"
            )
    ratios = [row["ratio"] for row in rows.values()]
    kept = min(ratios) >= 1 and max(ratios) <= PROMISE
    write_result(
        "memory",
        arguments=arguments,
        question="Is the planner's peak memory an upper bound, and a tight one?",
        rows=[{"contender": name, "measurements": 1} for name in rows],
        medians={
            name: {key: row[key] for key in ("predicted_mib", "measured_mib", "ratio")} for name, row in rows.items()
        },
        answers={},
        checks={"smallest_ratio": min(ratios), "largest_ratio": max(ratios), "kept": kept},
        raw=rows,
        started=started,
    )
    print(f"ratios {min(ratios):.2f} to {max(ratios):.2f}; promise {'kept' if kept else 'broken'}")


def measure(flags: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, float]:
    """One run: what its plan said and what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [
            *(sys.executable, "-m", "lowregret", "sft", "--model", arguments.model, "--data", arguments.data),
            *("--validation-size", "4", "--test-size", "4", "--limit", "1000", "--device", arguments.device),
            *("--threads", str(arguments.threads)),
            *("--steps", str(arguments.steps), "--out", str(out), "--json", *flags),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(flags)} failed:\n{done.stderr[-2000:]}")
        measured = json.loads(done.stdout)["peak_memory_bytes"]
        parts = read_toml(ResolvedPlan, out / "plan.toml").memory_bytes
    predicted = parts["total"]
    return {
        "predicted_mib": predicted / 2**20,
        "measured_mib": measured / 2**20,
        "ratio": predicted / measured,
        **{f"{name}_mib": size / 2**20 for name, size in parts.items() if name != "total"},
    }


if __name__ == "__main__":
    main()
