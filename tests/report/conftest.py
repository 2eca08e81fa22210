"""A run directory as training leaves it, with rows whose curves have the shape of real ones.

The renderers only read files, so made-up numbers serve here; nothing is asserted about their truth.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from lowregret.specs import (
    AdapterSpec,
    DataFacts,
    DataSpec,
    Derived,
    FullSpec,
    ModelSpec,
    OptimSpec,
    ResolvedPlan,
    RunSpec,
    SlotSpec,
    TrainSpec,
)
from lowregret.store import Environment, EvalRow, MetricRow, RunDirectory, SampleRow, collect_environment

HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)> & \"quotes\""
"""Text that a model or a data set could hold and that must never become markup."""

SLOTS = (
    SlotSpec(name="r1", weights=AdapterSpec(rank=1), optim=OptimSpec(lr=3e-4)),
    SlotSpec(name="r8", weights=AdapterSpec(rank=8), optim=OptimSpec(lr=3e-4)),
    SlotSpec(name="r64", weights=AdapterSpec(rank=64), optim=OptimSpec(lr=3e-4)),
    SlotSpec(name="full", weights=FullSpec(), optim=OptimSpec(lr=3e-5)),
)
SWEEP = tuple(
    SlotSpec(name=f"r{rank}-lr{lr:g}", weights=AdapterSpec(rank=rank), optim=OptimSpec(lr=lr))
    for rank in (1, 8, 64)
    for lr in (1e-4, 3e-4, 1e-3, 3e-3)
)

MakeRun = Callable[..., RunDirectory]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(
        slots: tuple[SlotSpec, ...] = SLOTS,
        *,
        steps: int = 120,
        fall: float = 0.35,
        name: str = "run",
        diverged: str | None = None,
        stopped: str | None = None,
        finished: bool = True,
        text: str = "4 + 4 =",
        also: tuple[str, ...] = (),
    ) -> RunDirectory:
        return write_run(
            tmp_path / name,
            slots,
            steps,
            fall=fall,
            diverged=diverged,
            stopped=stopped,
            finished=finished,
            text=text,
            also=also,
        )

    return make


def write_run(
    path: Path,
    slots: tuple[SlotSpec, ...],
    steps: int,
    *,
    fall: float,
    diverged: str | None,
    stopped: str | None,
    finished: bool,
    text: str,
    also: tuple[str, ...],
) -> RunDirectory:
    spec = RunSpec(
        model=ModelSpec(source="smollm2-135m"),
        data=DataSpec(source="reasoning-gym:chain_sum"),
        slots=slots,
        train=TrainSpec(steps=steps, also_eval=also),
    )
    run = RunDirectory.create(path, spec=spec, plan=plan_of(spec, steps, text), environment=environment_of())
    draw, last = random.Random(0), steps if finished else steps // 2
    run.append_samples(samples_of("before", ("base",), text))
    evaluations = sorted({0, 1, 2, 4, 8, 16, 32, 64, last} & set(range(last + 1)))
    for split, offset in (("validation", 0.02), ("test", 0.0), *((name, 1.1) for name in also)):
        run.append_evals([EvalRow(step=0, slot="base", split=split, nll=1.464 + offset, tokens=9000)])
        for step in evaluations:
            run.append_evals(
                EvalRow(step=step, slot=s.name, split=split, tokens=9000, nll=loss_at(s, step, steps, fall) + offset)
                for s in slots
                if s.name not in (diverged, stopped) or step <= 8
            )
    for step in range(1, last + 1):
        noise = draw.gauss(0, 0.1)  # Slots see the same batches, so they share most of the noise.
        burst = {diverged: math.nan} if step == 9 else {}
        run.append_metrics(
            MetricRow(
                step=step,
                slot=s.name,
                loss=burst.get(s.name, loss_at(s, step, steps, fall) + noise),
                tokens=640,
                lr=s.optim.lr or 0.0,
                grad_norm=0.7,
                seconds=0.9,
            )
            for s in slots
            if s.name not in (diverged, stopped) or step <= 9
        )
    if finished:
        finish(run, slots, (diverged, stopped), steps, text)
    run.close()
    return run


def loss_at(slot: SlotSpec, step: int, steps: int, fall: float) -> float:
    """A fall linear in log steps, which low ranks leave early and bad learning rates slow down."""
    rank = slot.weights.rank if isinstance(slot.weights, AdapterSpec) else 512
    best = 3e-4 if isinstance(slot.weights, AdapterSpec) else 3e-5
    detune = 1 - 0.09 * math.log(max(slot.optim.lr or best, 1e-9) / best) ** 2
    progress = math.log1p(step) / math.log1p(steps)
    held_back = 0.12 * max(0.0, progress - 0.5) / (rank**0.5)
    return 1.464 - fall * progress * detune + held_back


def finish(
    run: RunDirectory, slots: tuple[SlotSpec, ...], ended: tuple[str | None, str | None], steps: int, text: str
) -> None:
    lasting = [slot for slot in slots if slot.name not in ended]
    for slot in lasting:
        if isinstance(slot.weights, AdapterSpec):
            folder = run.adapter_folder(slot.name)
            folder.mkdir(parents=True)
            shape = [slot.weights.rank, 576]
            header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
            (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    run.append_samples(samples_of("after", tuple(slot.name for slot in lasting), text))
    run.write_data_report({"read": 2100, "dropped_overlong": 12, "splits": {"train": 1800, "test": 144}})
    became = {s.name: {"diverged": s.name == ended[0], "stopped": s.name == ended[1]} for s in slots}
    run.mark_finished(
        {"steps": steps, "seconds": 148.2, "tokens": 251_000, "peak_memory_bytes": 1_900_000_000, "slots": became}
    )


def samples_of(when: Literal["before", "after"], slots: tuple[str, ...], text: str) -> list[SampleRow]:
    return [
        SampleRow(when=when, slot=slot, prompt=f"{text} ({i})", reference="8", answer=f"{text} gives\n{8 + i}")
        for i in range(2)
        for slot in slots
    ]


def plan_of(spec: RunSpec, steps: int, text: str) -> ResolvedPlan:
    return ResolvedPlan(
        spec=spec,
        facts=DataFacts(num_examples=1800, num_tokens=260_000, num_completion_tokens=31_000, longest=211),
        steps=steps,
        tokens_per_microbatch=4096,
        device="cpu",
        dtype="fp32",
        threads=2,
        derived=(
            Derived(name="steps", value=steps, reason="given on the command line", source="user"),
            Derived(name="slots.r8.optim.lr", value=3e-4, reason=f"10 x the FullFT law; {text}", source="science 2"),
        ),
        warnings=(f"rank 1 stores fewer bits than the data holds {text}",),
        memory_bytes={"base weights": 538_000_000, "activations": 610_000_000},
    )


def environment_of() -> Environment:
    collected = collect_environment(threads=2, command=("lowregret", "sft", "--rank", "1,8,64"))
    return replace(collected, git_commit="0" * 40, git_diff="+x = 2\n")


@pytest.fixture
def sweep() -> tuple[SlotSpec, ...]:
    return SWEEP


@pytest.fixture
def hostile() -> str:
    return HOSTILE
