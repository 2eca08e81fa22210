"""Sixteen small adapters on `micro` in fp32: what stacking slots of one rank, and keeping freed pages, are worth.

Three settings in turn, in one process and on one thread: as it is; each slot by itself (`grouped.separate_linear`); and
freed pages given back after every micro-batch. The same batches, the same losses; medians over rounds.

    python benchmarks/micro_bank.py
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import cast
from unittest.mock import patch

import torch
from beside.envelope import write_result
from beside.turns import median, need, parse, parser_of, take_turns

from lowregret.adapters.layer import AdaptedLinear
from lowregret.cli.machine import device_facts
from lowregret.data.examples import ExampleStore
from lowregret.data.order import ExampleOrder
from lowregret.data.packing import example_of, microbatches
from lowregret.launch.banks import materials
from lowregret.planner.resolve import resolve
from lowregret.specs import AdapterSpec, DataSpec, HardwareSpec, ModelSpec, OptimSpec, RunSpec, SlotSpec, TrainSpec
from lowregret.training import memory
from lowregret.training.pretrain import ensure_base
from lowregret.training.state import build_state
from lowregret.training.step import train_step

RANKS = (1, 1, 1, 4, 4, 4, 4, 4, 16, 16, 16, 16, 16, 64, 64, 64)
BATCH, STEPS = 8, 4
GIVEN_BACK = patch.multiple(memory, LEAST_RELEASED=0, MOST_GROWTH=0.0)


def main() -> None:
    """Time the settings in turn and write the medians."""
    started = time.perf_counter()
    parser = parser_of(__doc__, data="markov", short={})
    parser.set_defaults(model="micro", threads=1)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each setting (7)")
    arguments = parse(parser, {})
    need(arguments.rounds, arguments, "--rounds")
    ensure_base("micro", threads=device_facts("cpu").threads)
    settings = ("as it is", "slot by slot", "pages given back")
    losses: dict[str, list[float]] = {}

    def act(name: str) -> float:
        with (
            patch.object(AdaptedLinear, "stacks", name != "slot by slot"),
            GIVEN_BACK if name == "pages given back" else nullcontext(),
        ):
            step = _steps()
            step(0)
            began = time.perf_counter()
            for number in range(1, STEPS + 1):
                losses[name] = step(number)
            return (time.perf_counter() - began) / STEPS

    seconds = take_turns("micro_bank", settings, arguments.rounds, act, lambda took: f"{took:.3f} s a step")
    medians = {name: {"seconds_a_step": median(own)} for name, own in seconds.items()}
    reference = losses["as it is"]
    write_result(
        "micro_bank",
        arguments=arguments,
        question="What are slots of one rank as one product, and pages that are kept, worth on a micro base?",
        rows=[{"contender": name, "format": "fp32", "measurements": arguments.rounds} for name in settings],
        medians=medians,
        answers={},
        checks={
            "tokens_a_step": BATCH * 32 * len(RANKS),
            "largest_loss_difference": max(
                abs(a - b) for own in losses.values() for a, b in zip(own, reference, strict=True)
            ),
        },
        raw=seconds,
        started=started,
    )
    print(json.dumps(medians, indent=1))


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
    train_split = cast(ExampleStore, found.data.train)
    orders = {slot.name: ExampleOrder(len(train_split), slot.data_seed) for slot in slots}

    def step(number: int) -> list[float]:
        rows = {
            name: [example_of(train_split, int(index)) for index in order.batch(number, BATCH)]
            for name, order in orders.items()
        }
        batches = microbatches(rows, plan.tokens_per_microbatch)
        reports = train_step(lane.model, batches, lane.optimizers, factor=1.0)
        return [report.loss for report in reports.values()]

    return step


if __name__ == "__main__":
    main()
