"""Runs to diagnose: trained here in a second or two, or with the logs of a stated curve by the store's own writer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from lowregret.data.load import load_data
from lowregret.data.tokenizer import TextTokenizer
from lowregret.models.locate import locate_model
from lowregret.planner.recommend import assumed_shape
from lowregret.planner.resolve import resolve
from lowregret.planner.shapes import read_shape
from lowregret.specs import (
    AdapterSpec,
    DataFacts,
    DataSpec,
    DeviceFacts,
    FullSpec,
    HardwareSpec,
    ModelSpec,
    OptimSpec,
    RunSpec,
    SlotSpec,
    TrainSpec,
)
from lowregret.store import EvalRow, MetricRow, RunDirectory, collect_environment
from lowregret.studies.diagnose import RunView, Symptom, diagnose_run, surviving_shares, view_of
from lowregret.training.progress import Silent
from lowregret.training.sft import train

MACHINE = DeviceFacts(kind="cpu", memory_bytes=8 << 30, bf16_fast=False, threads=1)
SHAPE = replace(assumed_shape(576, 30), model_type="llama")
FACTS = DataFacts(num_examples=100_000, num_tokens=4_000_000, num_completion_tokens=1_000_000, longest=100)

Curve = Callable[[str, int], float]
"""From a slot's name and a step to a loss."""


def lora(name: str, rank: int = 8, lr: float = 3e-4, **fields: object) -> SlotSpec:
    """An adapter; further fields are those of `AdapterSpec`."""
    weights = AdapterSpec(rank=rank, **fields)  # pyright: ignore[reportArgumentType]
    return SlotSpec(name=name, weights=weights, optim=OptimSpec(lr=lr))


def full(name: str = "full", lr: float = 1e-4, **fields: object) -> SlotSpec:
    """Full fine-tuning; further fields are those of `FullSpec`."""
    return SlotSpec(name=name, weights=FullSpec(**fields), optim=OptimSpec(lr=lr))  # pyright: ignore[reportArgumentType]


def trained(
    folder: Path,
    *,
    model: Path,
    data: DataSpec,
    slots: Sequence[SlotSpec],
    steps: int = 12,
    batch_size: int = 4,
    dtype: str = "fp32",
) -> RunView:
    """Train for real, and read the run as `lowregret diagnose` does."""
    spec = RunSpec(
        model=ModelSpec(source=str(model)),
        data=data,
        slots=tuple(slots),
        train=TrainSpec(steps=steps, batch_size=batch_size, eval_every=max(1, steps // 8), num_samples=0),
        hardware=HardwareSpec(device="cpu", dtype=dtype, threads=1),  # pyright: ignore[reportArgumentType]
    )
    found = locate_model(spec.model)
    shape = read_shape(found.path)
    tokens = load_data(spec.data, TextTokenizer.from_folder(found.path))
    plan = resolve(spec, shape=shape, facts=tokens.facts, hardware=MACHINE)
    environment = collect_environment(threads=1, command=("test",))
    with RunDirectory.create(folder, spec=spec, plan=plan, environment=environment) as run:
        run.write_data_report(asdict(tokens.report))
        train(run, model=found, data=tokens, listener=Silent())
        return view_of(run, shape=shape, surviving=surviving_shares(run, found.path))


def logged(
    folder: Path,
    slots: Sequence[SlotSpec],
    held_out: Curve,
    *,
    training: Curve | None = None,
    test: Curve | None = None,
    grad_norm: Curve = lambda slot, step: 1.0,
    steps: int = 256,
    facts: DataFacts = FACTS,
    tokens: int = 5000,
    **settings: object,
) -> RunView:
    """A run whose logs hold these losses at every step, and the plan that the planner makes of it.

    Args:
        training: its training losses; None: the held-out ones.
        test: its losses on the test split; None: those of validation.
        tokens: of each held-out split.
        settings: further fields of `TrainSpec`.
    """
    spec = RunSpec(
        model=ModelSpec(source="none"),
        data=DataSpec(source="none"),
        slots=tuple(slots),
        train=TrainSpec(steps=steps, **settings),  # pyright: ignore[reportArgumentType]
    )
    plan = resolve(spec, shape=SHAPE, facts=facts, hardware=MACHINE)
    with RunDirectory.create(folder, spec=spec, plan=plan, environment=environment()) as run:
        names = [slot.name for slot in slots]
        curves: Mapping[str, Curve] = {"validation": held_out, "test": test or held_out}
        for split, curve in curves.items():
            run.append_evals(
                EvalRow(step=step, slot=name, split=split, nll=curve(name, step), tokens=tokens)
                for step in evaluated(steps)
                for name in names
            )
        for step in range(1, steps + 1):
            run.append_metrics(
                MetricRow(
                    step=step,
                    slot=name,
                    loss=(training or held_out)(name, step),
                    tokens=320,
                    lr=slots[k].optim.lr or 0.0,
                    grad_norm=grad_norm(name, step),
                )
                for k, name in enumerate(names)
            )
        return view_of(run, shape=SHAPE)


def evaluated(steps: int) -> list[int]:
    return sorted({0, steps, *(1 << k for k in range(steps.bit_length()) if 1 << k <= steps)})


def falling(step: int, *, by: float = 0.5, steps: int = 256) -> float:
    """A loss that falls linearly in log steps, as a tuned run's does."""
    return 2.0 - by * math.log1p(step) / math.log1p(steps)


def environment():
    return collect_environment(threads=1, command=("test",))


def found(view: RunView, rule: str) -> list[Symptom]:
    """What one rule found; it is an error if it could not be applied."""
    diagnosis = diagnose_run(view)
    assert rule in diagnosis.checked, dict(diagnosis.unchecked).get(rule, "no such rule")
    return [symptom for symptom in diagnosis.symptoms if symptom.rule == rule]


def write_rows(file: Path, rows: Sequence[tuple[str, str]]) -> Path:
    """Questions and answers as a data file."""
    file.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    return file
