"""Sixteen small adapters on `micro` in fp32: what stacking slots of one rank, and keeping freed pages, are worth.

Three settings in turn, in one process and on one thread: as it is; each slot by itself (`grouped.separate_linear`); and
freed pages given back after every micro-batch. The same batches, the same losses; medians over rounds.

    python benchmarks/micro_bank.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch

from lowregret.adapters.layer import AdaptedLinear
from lowregret.cli.machine import device_facts
from lowregret.data.order import ExampleOrder
from lowregret.data.packing import example_of, microbatches
from lowregret.launch.banks import materials
from lowregret.planner.resolve import resolve
from lowregret.specs import AdapterSpec, DataSpec, HardwareSpec, ModelSpec, OptimSpec, RunSpec, SlotSpec, TrainSpec
from lowregret.specs.codec import to_dict
from lowregret.store import collect_environment
from lowregret.training import memory
from lowregret.training.pretrain import ensure_base
from lowregret.training.state import build_state
from lowregret.training.step import train_step

RESULTS = Path(__file__).parent / "results" / "micro_bank.json"
RANKS = (1, 1, 1, 4, 4, 4, 4, 4, 16, 16, 16, 16, 16, 64, 64, 64)
BATCH, STEPS = 8, 4


def main() -> None:
    """Time the settings in turn and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    ensure_base("micro", threads=device_facts("cpu").threads)
    seconds: dict[str, list[float]] = {"as it is": [], "slot by slot": [], "pages given back": []}
    losses: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, own in seconds.items():
            with (
                patch.object(AdaptedLinear, "stacks", name != "slot by slot"),
                patch.object(memory, "MOST_KEPT", 0 if name == "pages given back" else memory.MOST_KEPT),
            ):
                step = _steps()
                step(0)
                started = time.perf_counter()
                for number in range(1, STEPS + 1):
                    losses[name] = step(number)
                own.append((time.perf_counter() - started) / STEPS)
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    reference = losses["as it is"]
    result = {
        "tokens_a_step": BATCH * 32 * len(RANKS),
        "seconds": medians,
        "ratio_to_slot_by_slot": medians["slot by slot"] / medians["as it is"],
        "ratio_to_pages_given_back": medians["pages given back"] / medians["as it is"],
        "largest_loss_difference": max(
            abs(a - b) for own in losses.values() for a, b in zip(own, reference, strict=True)
        ),
        "rounds": rounds,
        "environment": to_dict(collect_environment(threads=1, device="cpu", command=sys.argv)),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    json.dump({name: value for name, value in result.items() if name != "environment"}, sys.stdout, indent=1)


def _steps() -> Callable[[int], list[float]]:
    """A fresh bank of sixteen slots, as a function that takes one step and returns the losses."""
    data = DataSpec(source="markov", limit=2000, validation_size=64, test_size=128)
    found = materials(ModelSpec(source="micro"), data)
    slots = tuple(
        SlotSpec(name=f"s{k}", weights=AdapterSpec(rank=rank, init_seed=k), optim=OptimSpec(lr=1e-3), data_seed=k)
        for k, rank in enumerate(RANKS)
    )
    hardware = HardwareSpec(device="cpu", dtype="fp32", threads=1)
    train = TrainSpec(steps=STEPS + 1, batch_size=BATCH)
    spec = RunSpec(model=ModelSpec(source="micro"), data=data, slots=slots, train=train, hardware=hardware)
    plan = resolve(spec, shape=found.shape, facts=found.data.facts, hardware=device_facts("cpu"))
    (lane,) = build_state(plan, found.folder, notify=lambda _: None).lanes
    torch.set_num_threads(1)
    orders = {slot.name: ExampleOrder(len(found.data.train), slot.data_seed) for slot in slots}

    def step(number: int) -> list[float]:
        rows = {
            name: [example_of(found.data.train, int(index)) for index in order.batch(number, BATCH)]
            for name, order in orders.items()
        }
        batches = microbatches(rows, plan.tokens_per_microbatch)
        reports = train_step(lane.model, batches, lane.optimizers, factor=1.0)
        return [report.loss for report in reports.values()]

    return step


if __name__ == "__main__":
    main()
