"""From a run's specification to a plan with nothing left open.

Pure arithmetic: the caller brings the base's shape, the data's counts and the machine's facts. Every value that is
filled in stands in `ResolvedPlan.derived` with its reason; what the user set is left as it is. A plan that can't fit is
refused, and the nearest one that does is named.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, cast

from lowregret.errors import CapacityError, SpecError
from lowregret.planner.information import information_of
from lowregret.planner.learning_rate import LearningRate, full_rate, lora_rate
from lowregret.planner.memory import Cache, MemoryQuestion, largest_micro_batch, memory, needed_bytes
from lowregret.planner.validate import (
    check_arithmetic,
    check_fidelity,
    check_warmup,
    validate_against_data,
    validate_against_shape,
    validate_spec,
)
from lowregret.planner.validate_rl import validate_lengths
from lowregret.planner.warn import warnings_of
from lowregret.specs.adapter import AdapterSpec
from lowregret.specs.data import DataFacts
from lowregret.specs.hardware import DeviceFacts
from lowregret.specs.plan import Derived, Information, ResolvedPlan
from lowregret.specs.run import RunSpec, SlotSpec
from lowregret.specs.shape import ModelShape

USUAL_MICROBATCH = {"cpu": 2048, "cuda": 16384, "mps": 4096}
"""Tokens of a micro-batch by device. On a CPU larger ones leave the caches and are no faster."""


def resolve(
    spec: RunSpec,
    *,
    shape: ModelShape,
    facts: DataFacts,
    hardware: DeviceFacts,
    information: Information | None = None,
    must_fit: bool = True,
) -> ResolvedPlan:
    """Fill in what the specification leaves open.

    Args:
        spec: the run as the user gave it.
        shape: of the base (`planner.shapes.read_shape`).
        facts: counts of the training split.
        hardware: the device that will compute.
        information: bits in the data where they were measured or are rewards; None: the rule of thumb.
        must_fit: refuse a plan that does not fit. False, for a plan that is made on another machine than it will run
            on: say it as a warning, unless the user stated a memory.

    Raises:
        SpecError: a value is out of range, or does not go with the model.
        DataError: there is nothing to train on.
        CapacityError: it does not fit in memory; the message names the nearest plan that does.
    """
    validate_spec(spec)
    validate_against_shape(spec, shape)
    validate_against_data(spec, facts)
    validate_lengths(spec, shape, facts)
    derived: list[Derived] = []
    device = _device(spec, hardware, derived)
    dtype = _dtype(spec, hardware, derived)
    check_arithmetic(spec.slots, dtype)
    threads = _threads(spec, hardware, derived)
    steps = _steps(spec, facts, derived)
    check_warmup(spec.train, steps)
    check_fidelity(spec.train, dtype, steps)
    slots = tuple(_slot(slot, spec, shape, steps, derived) for slot in spec.slots)
    settled = replace(spec.hardware, device=device, dtype=dtype, threads=threads)
    filled = replace(spec, slots=slots, train=replace(spec.train, steps=steps), hardware=settled)
    information = information or information_of(filled, facts)
    must_fit = must_fit or spec.hardware.memory_bytes is not None
    tokens, misfit = _tokens_per_microbatch(filled, shape, facts, hardware, derived)
    if misfit and must_fit:
        raise CapacityError(misfit)
    filled = replace(filled, hardware=replace(settled, tokens_per_microbatch=tokens))
    return ResolvedPlan(
        spec=filled,
        facts=facts,
        information=information,
        steps=steps,
        tokens_per_microbatch=tokens,
        device=device,
        dtype=dtype,
        bf16_fast=hardware.bf16_fast,
        threads=threads,
        derived=tuple(derived),
        warnings=(
            *([misfit] if misfit else []),
            *warnings_of(filled, shape=shape, facts=facts, information=information),
        ),
        memory_bytes=memory(shape, memory_question(filled, facts, tokens, hardware.bf16_fast)),
    )


def memory_question(spec: RunSpec, facts: DataFacts, tokens: int, bf16_fast: bool) -> MemoryQuestion:
    """A specification with device and dtype filled in, as a question about the memory of a device of its kind."""
    return MemoryQuestion(
        slots=tuple(slot.weights for slot in spec.slots),
        dtype=cast('Literal["bf16", "fp32"]', spec.hardware.dtype),
        tokens=tokens,
        device=spec.hardware.device,
        bf16_fast=bf16_fast,
        checkpointing=spec.hardware.activation_checkpointing,
        cache=cache_of(spec, facts),
        fidelity=bool(spec.train.fidelity_at),
    )


def cache_of(spec: RunSpec, facts: DataFacts) -> Cache | None:
    """Keys and values that the sampler keeps; none where nothing is drawn, or drawn at once from the prompt's pass."""
    if spec.rl is None or spec.rl.sampling.engine != "own" or spec.rl.sampling.max_new_tokens == 1:
        return None
    return Cache(rows=spec.rl.sampling.rows, length=facts.longest)


def _device(spec: RunSpec, hardware: DeviceFacts, derived: list[Derived]) -> str:
    if spec.hardware.device == "auto":
        reason = "the first accelerator, else the CPU"
        derived.append(Derived(name="hardware.device", value=hardware.kind, reason=reason, source="machine"))
        return hardware.kind
    if not spec.hardware.device.startswith(hardware.kind):
        raise SpecError(
            f"hardware.device: {spec.hardware.device!r} was asked for, the machine was measured as {hardware.kind!r}; "
            "give the same device to both"
        )
    return spec.hardware.device


def _dtype(spec: RunSpec, hardware: DeviceFacts, derived: list[Derived]) -> Literal["bf16", "fp32"]:
    dtype = dtype_of(spec, hardware)
    if spec.hardware.dtype != "auto":
        return dtype
    reason = f"{hardware.kind} multiplies bf16 {'fast' if hardware.bf16_fast else 'no faster than fp32'}"
    derived.append(Derived(name="hardware.dtype", value=dtype, reason=reason, source="machine"))
    return dtype


def dtype_of(spec: RunSpec, hardware: DeviceFacts) -> Literal["bf16", "fp32"]:
    """The run's working format: as asked, else bf16 where the device multiplies it fast."""
    if spec.hardware.dtype != "auto":
        return spec.hardware.dtype
    return "bf16" if hardware.bf16_fast else "fp32"


def _threads(spec: RunSpec, hardware: DeviceFacts, derived: list[Derived]) -> int:
    if spec.hardware.threads is not None:
        return spec.hardware.threads
    reason = "torch's default here, fixed so that a resumed run adds in the same order"
    derived.append(Derived(name="hardware.threads", value=hardware.threads, reason=reason, source="machine"))
    return hardware.threads


def _steps(spec: RunSpec, facts: DataFacts, derived: list[Derived]) -> int:
    if spec.train.steps is not None:
        return spec.train.steps
    steps = max(1, math.ceil(facts.num_examples * spec.train.epochs / spec.train.batch_size))
    reason = f"{facts.num_examples:,} examples x {spec.train.epochs:g} epochs / {spec.train.batch_size} a step"
    source = "data, approximate" if facts.approximate else "data"
    derived.append(Derived(name="train.steps", value=steps, reason=reason, source=source))
    return steps


def slot_rate(slot: SlotSpec, spec: RunSpec, shape: ModelShape, steps: int) -> LearningRate:
    """The planner's learning rate for a slot, whatever the user set."""
    batch, schedule = spec.train.batch_size, spec.train.schedule.kind
    if isinstance(slot.weights, AdapterSpec):
        return lora_rate(
            shape.model_type,
            shape.hidden_size,
            rank=slot.weights.rank,
            steps=steps,
            alpha=slot.weights.alpha,
            schedule=schedule,
            batch_size=batch,
            task=spec.task,
        )
    return full_rate(
        shape.model_type, shape.hidden_size, steps=steps, schedule=schedule, batch_size=batch, task=spec.task
    )


def _slot(slot: SlotSpec, spec: RunSpec, shape: ModelShape, steps: int, derived: list[Derived]) -> SlotSpec:
    if slot.optim.lr is not None:
        return slot
    rate = slot_rate(slot, spec, shape, steps)
    value = float(f"{rate.value:.2e}")
    reason = f"{rate.reason}; 90 % interval {rate.low:.1e} to {rate.high:.1e}"
    derived.append(Derived(name=f"slots.{slot.name}.optim.lr", value=value, reason=reason, source=rate.source))
    return replace(slot, optim=replace(slot.optim, lr=value))


def _tokens_per_microbatch(
    spec: RunSpec, shape: ModelShape, facts: DataFacts, hardware: DeviceFacts, derived: list[Derived]
) -> tuple[int, str]:
    """The device's usual size, at least one example, no more than a step has or fits; and why it can't fit, if so."""
    available = spec.hardware.memory_bytes or hardware.memory_bytes
    asked = spec.hardware.tokens_per_microbatch
    # An example is never split, so one that is longer than the budget is a micro-batch by itself.
    need = max(facts.longest, asked or 0)
    most = largest_micro_batch(shape, memory_question(spec, facts, 1, hardware.bf16_fast), memory_bytes=available)
    misfit = "" if most >= need else _misfit(spec, shape, facts, need, available, hardware.bf16_fast)
    if asked is not None:
        return asked, misfit
    usual = USUAL_MICROBATCH[hardware.kind]
    step = math.ceil(spec.train.batch_size * len(spec.slots) * _learned_tokens(spec, facts))
    tokens = max(facts.longest, min(usual, most, step))
    limits = {
        usual: f"usual on {hardware.kind}",
        most: f"what fits in {available / 2**30:.1f} GiB",
        step: "a whole step",
    }
    reason = "the longest example" if tokens == facts.longest else limits[tokens]
    source = "memory model and data"
    derived.append(Derived(name="hardware.tokens_per_microbatch", value=tokens, reason=reason, source=source))
    return tokens, misfit


def _learned_tokens(spec: RunSpec, facts: DataFacts) -> float:
    """Tokens of a batch's unit: of an example, or of a prompt's group at the longest completions."""
    if spec.rl is None:
        return facts.mean_length
    return spec.rl.group * (facts.mean_length + spec.rl.sampling.max_new_tokens)


def _misfit(spec: RunSpec, shape: ModelShape, facts: DataFacts, tokens: int, available: int, bf16_fast: bool) -> str:
    needed = needed_bytes(memory(shape, memory_question(spec, facts, tokens, bf16_fast)))
    head = (
        f"hardware.memory_bytes: the run needs about {needed / 2**30:.1f} GiB for {tokens} tokens at once and "
        f"{available / 2**30:.1f} GiB are free; "
    )
    return head + nearest_fit(spec, shape, facts, tokens, available, bf16_fast)


def nearest_fit(
    spec: RunSpec, shape: ModelShape, facts: DataFacts, tokens: int, available: int, bf16_fast: bool
) -> str:
    """The smallest change that fits, in a sentence: checkpointing, shorter examples, bf16, fewer or smaller slots."""
    changes: list[tuple[str, RunSpec]] = [("", spec)]
    lean = replace(spec, hardware=replace(spec.hardware, activation_checkpointing=True))
    changes.append(("activation checkpointing (--activation-checkpointing)", lean))
    if spec.hardware.dtype == "fp32":
        half = replace(lean, hardware=replace(lean.hardware, dtype="bf16"))
        changes.append(("activation checkpointing and --dtype bf16", half))
    for name, change in changes:
        most = largest_micro_batch(shape, memory_question(change, facts, 1, bf16_fast), memory_bytes=available)
        if most >= tokens:
            return f"it fits with {name}"
    for name, change in changes:
        most = largest_micro_batch(shape, memory_question(change, facts, 1, bf16_fast), memory_bytes=available)
        if most >= 256:
            with_change = f" and {name}" if name else ""
            return f"the nearest that fits: examples of at most {most} tokens (--max-length {most}){with_change}"
    smallest = replace(changes[-1][1], slots=(_rank_one(spec.slots[0]),))
    most = largest_micro_batch(shape, memory_question(smallest, facts, 1, bf16_fast), memory_bytes=available)
    if most >= 256:
        return f"the nearest that fits: one adapter of rank 1, {changes[-1][0]}, --max-length {min(most, tokens)}"
    return "no adapter on this base fits; take a smaller base or a machine with more memory"


def _rank_one(slot: SlotSpec) -> SlotSpec:
    if isinstance(slot.weights, AdapterSpec):
        return replace(slot, name="r1", weights=replace(slot.weights, rank=1))
    return replace(slot, name="r1", weights=AdapterSpec(rank=1))
