"""Many adapters in one pass beside one adapter, and beside the same adapters one after another.

    python benchmarks/bank.py --model smollm2-135m --slots 4 --rank 16

Questions: how much more memory do K adapters take than one at the same token budget per micro-batch, and how much time
does one pass over all slots save against K passes? Each arm is a process of its own; arms take turns; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LR, ALPHA = 3e-4, 32.0


def main() -> None:
    """Let the arms take turns and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="reasoning-gym:chain_sum")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sequences", type=int, default=2, help="sequences a step and slot")
    parser.add_argument("--budget", type=int, default=512, help="tokens per micro-batch, the same for every arm")
    parser.add_argument("--steps", type=int, default=6, help="the first one is warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/bank.json"))
    parser.add_argument("--child", choices=("one", "together", "in-turn"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print("RESULT " + json.dumps(run_arm(arguments.child, arguments)))
        return
    turns: dict[str, list[dict[str, float]]] = {"one": [], "together": [], "in-turn": []}
    for _ in range(arguments.rounds):
        for arm, found in turns.items():
            found.append(take_turn(arm))
            print(arm, found[-1], file=sys.stderr, flush=True)
    peaks = {arm: min(turn["peak_mib"] for turn in found) for arm, found in turns.items()}
    seconds = {arm: statistics.median(turn["seconds"] for turn in found) for arm, found in turns.items()}
    summary: dict[str, Any] = {
        "peak_mib": peaks,
        "seconds_a_step": seconds,
        "memory_together_over_one": peaks["together"] / peaks["one"],
        "speed_together_over_in_turn": seconds["in-turn"] / seconds["together"],
        "setting": {key: str(value) for key, value in vars(arguments).items() if key not in ("child", "out")},
        "threads": os.cpu_count(),
        "raw": turns,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({key: summary[key] for key in list(summary)[:4]}, indent=1))


def take_turn(arm: str) -> dict[str, float]:
    """One arm in a process of its own."""
    done = subprocess.run([sys.executable, *sys.argv, "--child", arm], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise SystemExit(f"{arm} failed:\n{done.stdout}\n{done.stderr}")


def run_arm(arm: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step after the first, and the process's peak memory."""
    import torch

    from lowregret.batches import TokenizedExample
    from lowregret.data.load import load_data
    from lowregret.data.packing import microbatches
    from lowregret.data.tokenizer import TextTokenizer
    from lowregret.models.load import load_module, with_bank
    from lowregret.models.locate import locate_model
    from lowregret.specs import AdapterSpec, DataSpec, ModelSpec, OptimSpec
    from lowregret.training.optimizer import AdamW
    from lowregret.training.step import train_step

    folder = locate_model(ModelSpec(source=arguments.model))
    store = load_data(DataSpec(source=arguments.data, limit=1000), TextTokenizer.from_folder(folder.path)).train
    model, bank = with_bank(load_module(folder, dtype=torch.bfloat16, device=torch.device("cpu")))
    slots = [f"s{k}" for k in range(1 if arm == "one" else arguments.slots)]
    for index, slot in enumerate(slots):
        bank.join(slot, AdapterSpec(rank=arguments.rank, alpha=ALPHA, init_seed=index))
    optimizers = {slot: AdamW(OptimSpec(lr=LR), bank.blocks(slot)) for slot in slots}
    # One adapter gets as many tokens as all of them together, so that the budget is filled in every arm.
    each = arguments.sequences * (arguments.slots if arm == "one" else 1)
    seconds: list[float] = []
    for step in range(arguments.steps):
        rows = [store[(step * each + k) % len(store)] for k in range(each)]
        examples = [TokenizedExample(tokens=tokens, completion=completion) for tokens, completion in rows]
        groups = [[slot] for slot in slots] if arm == "in-turn" else [slots]
        started = time.perf_counter()
        for group in groups:
            batches = microbatches(dict.fromkeys(group, examples), arguments.budget)
            train_step(model, batches, optimizers, factor=1.0)
        seconds.append(time.perf_counter() - started)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(seconds[1:]), "peak_mib": peak_mib}


if __name__ == "__main__":
    main()
