"""Runs benchmarks one after another, then draws the page: what `make bench` and `make bench-full` call.

    python benchmarks/run.py --set short
    python benchmarks/run.py --set full --data gsm8k/train.jsonl
    python benchmarks/run.py --set full --only sft_vs_trl,bank

The short set answers every question of the goals with smaller settings and has to end within 15 minutes on two cores;
the full set takes hours. Where there is a GPU, `gpu.py` runs too. Results are overwritten script by script, so that a
run that is stopped leaves the others as they were. Nothing else should run on the machine meanwhile. The time left is
said from what the committed results say that each script took, scaled by how this machine compares so far.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from beside.envelope import RESULTS
from beside.turns import clock, say

HERE = Path(__file__).parent
SHORT = (
    *("formats", "sft_vs_trl", "full_vs_trl", "lora_full_step", "gemm_share", "bank", "study_vs_trl", "sampling"),
    *("grpo_vs_trl", "scaling"),
)
GPU = ("gpu",) if shutil.which("nvidia-smi") else ()
FULL = (*SHORT, "sampling_long", "decoding", "pieces", "fidelity", "memory", "micro_bank", "plan", "grids")


def main() -> None:
    """Run the set; exit 1 where a script failed, after the others have had their turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=("short", "full"), default="short", help="which settings and scripts (short)")
    parser.add_argument("--only", default="", help=f"some of: {', '.join((*FULL, 'gpu'))}")
    parser.add_argument("--data", default="", help="GSM8K's train.jsonl; without it, data that is generated here")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of every contender (all cores)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder that the JSON is written to")
    arguments = parser.parse_args()
    everything = (*(SHORT if arguments.set == "short" else FULL), *GPU)
    chosen = [name for name in arguments.only.split(",") if name] or list(everything)
    if unknown := set(chosen) - {*FULL, "gpu"}:
        parser.error(f"--only: {', '.join(sorted(unknown))} is no script; there are {', '.join((*FULL, 'gpu'))}")
    flags = ["--results", str(arguments.results)]
    flags += ["--short"] if arguments.set == "short" else []
    flags += ["--data", arguments.data] if arguments.data else []
    flags += ["--threads", str(arguments.threads)] if arguments.threads else []
    expected = {name: recorded(arguments.results / f"{name}.json", arguments.set) for name in chosen}
    took: dict[str, float] = {}
    failed: list[str] = []
    began = time.perf_counter()
    for index, name in enumerate(chosen):
        say(f"== {index + 1}/{len(chosen)} {name}: {left_words(chosen[index:], took, expected)}")
        started = time.perf_counter()
        done = subprocess.run([sys.executable, HERE / f"{name}.py", *flags], stdout=subprocess.DEVNULL, check=False)
        took[name] = time.perf_counter() - started
        failed += [name] if done.returncode else []
    say(f"== {len(chosen)} scripts in {clock(time.perf_counter() - began)}")
    subprocess.run([sys.executable, HERE / "summary.py", "--results", arguments.results], check=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def recorded(file: Path, which: str) -> float | None:
    """Seconds that a script took when its result was written with this set of settings."""
    if not file.is_file():
        return None
    result = json.loads(file.read_text(encoding="utf-8"))
    same = "seconds" in result and result["setting"].get("set") == which
    return result["seconds"] if same else None


def left_words(left: list[str], took: dict[str, float], expected: dict[str, float | None]) -> str:
    """How long the rest will take, as far as anybody can know.

    >>> left_words(["b", "c"], {"a": 20.0}, {"a": 10.0, "b": 30.0, "c": 30.0})
    'about 2:00 left'
    """
    known = {name: seconds for name, seconds in expected.items() if seconds is not None}
    both = [name for name in took if name in known]
    pace = sum(took[name] for name in both) / sum(known[name] for name in both) if both else 1.0
    guesses = [*(pace * seconds for seconds in known.values()), *took.values()]
    if not guesses:
        return "time left not known yet"
    typical = sum(guesses) / len(guesses)
    return f"about {clock(sum(pace * known[name] if name in known else typical for name in left))} left"


if __name__ == "__main__":
    main()
