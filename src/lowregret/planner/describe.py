"""A resolved plan for readers: one mapping for `--json`, and plain rows for tables.

Everything is computed from the plan and the shape; nothing here decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lowregret.planner.capacity import COMPLETION_TOKENS, Capacity, adapter_params_by_kind
from lowregret.planner.fits import memory_alternatives, what_fits
from lowregret.planner.flops import break_even_rank, flops, forward_flops, rollout_tokens, run_tokens
from lowregret.planner.information import judge_information
from lowregret.planner.learning_rate import full_rate, thinking_machines_law
from lowregret.planner.memory import full_params
from lowregret.planner.one_pass import one_pass_gain, one_pass_text
from lowregret.planner.rank import suggest_rank
from lowregret.planner.resolve import slot_rate
from lowregret.planner.targets import select
from lowregret.specs.adapter import AdapterSpec
from lowregret.specs.data import DataFacts
from lowregret.specs.optim import OptimSpec
from lowregret.specs.plan import Information, ResolvedPlan
from lowregret.specs.run import SlotSpec
from lowregret.specs.shape import MatrixShape, ModelShape

STORED_BYTES = {"fp32": 4, "bf16": 2}
"""Bytes of a stored adapter parameter; a run stores its fp32 masters."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table of text.

    >>> Table(title="Slots", columns=("name",), rows=(("r8",),)).rows
    (('r8',),)
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def plan_mapping(
    plan: ResolvedPlan, shape: ModelShape, *, macs_per_second: float | None = None, memory_bytes: int | None = None
) -> dict[str, Any]:
    """What `lowregret plan --json` prints. Keys at the top are those of the first adapter, or of the
    suggested one where only full weights train; `slots` has all.

    Args:
        plan: result of `resolve`.
        shape: of the base.
        macs_per_second: speed of the device, for a prediction of time; None: none is made.
        memory_bytes: memory of the device, for the largest rank and micro-batch that fit; None: not told.
    """
    fits = None if memory_bytes is None else what_fits(plan, shape, memory_bytes=memory_bytes)
    slots = [_slot_mapping(slot, plan, shape) for slot in plan.spec.slots]
    first = next((slot for slot in plan.spec.slots if isinstance(slot.weights, AdapterSpec)), None)
    first = first or _suggested(plan, shape)
    top = _adapter_mapping(first, plan, shape)
    tokens, completion, _ = _tokens(plan)
    macs = sum(_slot_macs(slot, plan, shape) for slot in plan.spec.slots)
    return {
        "model": plan.spec.model.source,
        "family": shape.model_type,
        "model_params": shape.num_params,
        "task": plan.spec.task,
        **top,
        **_full_mapping(plan, shape),
        "break_even_rank": _break_even(first, shape),
        "steps": plan.steps,
        "batch_size": plan.spec.train.batch_size,
        "tokens_per_slot": tokens,
        "completion_tokens_per_slot": completion,
        "flops_unit": "multiply-adds",
        "flops_of_run": macs,
        "seconds": None if macs_per_second is None else macs / macs_per_second,
        "one_pass_gain": _one_pass_gain(plan, shape),
        "device": plan.device,
        "dtype": plan.dtype,
        "threads": plan.threads,
        "tokens_per_microbatch": plan.tokens_per_microbatch,
        "memory_bytes": dict(plan.memory_bytes),
        "memory_bytes_by_format": memory_alternatives(plan, shape),
        "largest_rank_that_fits": None if fits is None else fits.rank,
        "largest_microbatch_that_fits": None if fits is None else fits.tokens_per_microbatch,
        "slots": slots,
        "derived": [{"name": d.name, "value": d.value, "reason": d.reason, "source": d.source} for d in plan.derived],
        "warnings": list(plan.warnings),
        "approximate": plan.facts.approximate or shape.approximate,
    }


def plan_tables(
    plan: ResolvedPlan, shape: ModelShape, *, macs_per_second: float | None = None, memory_bytes: int | None = None
) -> tuple[Table, ...]:
    """The same as tables: slots, capacity, cost, memory, what would fit, and reasons; arguments as `plan_mapping`."""
    mapping = plan_mapping(plan, shape, macs_per_second=macs_per_second, memory_bytes=memory_bytes)
    return (
        _slots_table(plan, shape),
        _capacity_table(plan, shape),
        _cost_table(mapping),
        Table(
            title="Peak memory, upper bound",
            columns=("part", "size"),
            rows=tuple((name.replace("_", " "), size_text(size)) for name, size in plan.memory_bytes.items() if size),
        ),
        _fits_table(mapping, memory_bytes),
        Table(
            title="Why",
            columns=("value", "is", "because", "source"),
            rows=tuple((d.name, str(d.value), d.reason, d.source) for d in plan.derived),
        ),
    )


def size_text(size: float) -> str:
    """Bytes for a reader.

    >>> size_text(3 << 30), size_text(1536), size_text(12)
    ('3.0 GiB', '1.5 KiB', '12 B')
    """
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"


def _slot_mapping(slot: SlotSpec, plan: ResolvedPlan, shape: ModelShape) -> dict[str, object]:
    if isinstance(slot.weights, AdapterSpec):
        return {"name": slot.name, "rank": slot.weights.rank, **_adapter_mapping(slot, plan, shape)}
    rate = slot_rate(slot, plan.spec, shape, plan.steps)
    return {
        "name": slot.name,
        "params": full_params(shape, slot.weights),
        "learning_rate": slot.optim.lr,
        "learning_rate_interval": [rate.low, rate.high],
    }


def _adapter_mapping(slot: SlotSpec, plan: ResolvedPlan, shape: ModelShape) -> dict[str, object]:
    weights = slot.weights
    assert isinstance(weights, AdapterSpec)
    matrices = select(shape, weights.targets, unembed=weights.unembed)
    capacity = _capacity(weights, matrices, plan)
    rate = slot_rate(slot, plan.spec, shape, plan.steps)
    suggestion = suggest_rank(
        shape,
        plan.facts,
        task=plan.spec.task,
        targets=weights.targets,
        unembed=weights.unembed,
        bits=capacity.data_bits,
        bits_per_parameter=_bits_per_parameter(plan),
    )
    cost = flops(shape, method="lora", adapted=matrices, rank=weights.rank, mean_length=_mean_length(plan))
    return {
        "adapter_params": capacity.params,
        "adapter_params_by_kind": adapter_params_by_kind(matrices, weights.rank),
        "expert_convention": _expert_convention(weights, matrices),
        "capacity_bits": capacity.bits,
        **_information_mapping(plan.information, plan.facts),
        "capacity_status": capacity.status,
        "capacity_reason": capacity.reason,
        "capacity_rules": {
            f"{_bits_per_parameter(plan):g} bits a parameter: smallest rank": capacity.smallest_rank,
            "a parameter for every completion token: smallest rank": capacity.strict_rank,
        },
        "suggested_rank": suggestion.rank,
        "suggested_rank_reason": suggestion.reason,
        "learning_rate": slot.optim.lr,
        "learning_rate_interval": [rate.low, rate.high],
        "learning_rate_estimate": rate.value,
        "learning_rate_law": thinking_machines_law(shape.model_type, shape.hidden_size, lora=True),
        "flops_per_token_lora": cost.per_token,
        "adapter_bytes": capacity.params * STORED_BYTES["fp32"],
        "adapter_bytes_bf16": capacity.params * STORED_BYTES["bf16"],
    }


def _information_mapping(information: Information | None, facts: DataFacts) -> dict[str, object]:
    assert information is not None  # filled in by `resolve`
    interval = information.interval
    return {
        "data_tokens": information.units if information.unit == COMPLETION_TOKENS else facts.num_completion_tokens,
        "data_units": information.units,
        "data_unit": information.unit,
        "data_bits": information.bits,
        "data_bits_interval": None if interval is None else [end * information.units for end in interval],
        "data_bits_reason": information.reason,
    }


def _full_mapping(plan: ResolvedPlan, shape: ModelShape) -> dict[str, object]:
    train = plan.spec.train
    rate = full_rate(
        shape.model_type,
        shape.hidden_size,
        steps=plan.steps,
        schedule=train.schedule.kind,
        batch_size=train.batch_size,
        task=plan.spec.task,
    )
    cost = flops(shape, method="full", mean_length=_mean_length(plan))
    return {
        "full_learning_rate": rate.value,
        "full_learning_rate_interval": [rate.low, rate.high],
        "full_learning_rate_law": thinking_machines_law(shape.model_type, shape.hidden_size, lora=False),
        "flops_per_token_full": cost.per_token,
    }


def _capacity(weights: AdapterSpec, matrices: tuple[MatrixShape, ...], plan: ResolvedPlan) -> Capacity:
    assert plan.information is not None  # filled in by `resolve`
    return judge_information(matrices, weights.rank, plan.information)


def _suggested(plan: ResolvedPlan, shape: ModelShape) -> SlotSpec:
    """The adapter that would do in place of the full weights."""
    information = plan.information
    assert information is not None  # filled in by `resolve`
    rank = suggest_rank(
        shape,
        plan.facts,
        task=plan.spec.task,
        bits=information.bits,
        bits_per_parameter=information.bits_per_parameter,
    ).rank
    slot = SlotSpec(name="suggested", weights=AdapterSpec(rank=rank), optim=OptimSpec())
    return replace(slot, optim=OptimSpec(lr=slot_rate(slot, plan.spec, shape, plan.steps).value))


def _bits_per_parameter(plan: ResolvedPlan) -> float:
    assert plan.information is not None  # filled in by `resolve`
    return plan.information.bits_per_parameter


def _break_even(first: SlotSpec, shape: ModelShape) -> float:
    weights = first.weights
    assert isinstance(weights, AdapterSpec)
    return break_even_rank(shape, select(shape, weights.targets, unembed=weights.unembed))


def _slot_macs(slot: SlotSpec, plan: ResolvedPlan, shape: ModelShape) -> float:
    tokens, completion, sampled = _tokens(plan)
    length = _mean_length(plan)
    if isinstance(slot.weights, AdapterSpec):
        matrices = select(shape, slot.weights.targets, unembed=slot.weights.unembed)
        cost = flops(shape, method="lora", adapted=matrices, rank=slot.weights.rank, mean_length=length)
    else:
        cost = flops(shape, method="full", mean_length=length)
    drawn = completion if sampled else 0.0
    return cost.of_run(tokens, completion) + forward_flops(shape, mean_length=length).of_run(sampled, drawn)


def _one_pass_gain(plan: ResolvedPlan, shape: ModelShape) -> float | None:
    """None where no two adapters share a pass, and where it was not measured: on other devices, and in RL, where a step
    is sampling for the most part."""
    adapters = [slot for slot in plan.spec.slots if isinstance(slot.weights, AdapterSpec)]
    if len(adapters) < 2 or plan.device != "cpu" or plan.spec.rl is not None:
        return None
    of_a_step = sum(_slot_macs(slot, plan, shape) for slot in adapters) / len(adapters) / max(1, plan.steps)
    return one_pass_gain(macs=of_a_step, slots=len(adapters), layers=shape.num_layers)


def _tokens(plan: ResolvedPlan) -> tuple[float, float, float]:
    """Tokens that a slot trains on, how many of them carry loss, and, in RL, tokens that its sampler computes."""
    rl, batch = plan.spec.rl, plan.spec.train.batch_size
    if rl is None:
        tokens, completion = run_tokens(plan.facts, steps=plan.steps, batch_size=batch)
        return tokens, completion, 0.0
    new = rl.sampling.max_new_tokens
    return rollout_tokens(plan.facts, steps=plan.steps, batch_size=batch, group=rl.group, max_new_tokens=new)


def _mean_length(plan: ResolvedPlan) -> float:
    """Tokens of a document; in RL of a prompt with the longest completion."""
    rl = plan.spec.rl
    return plan.facts.mean_length + (0 if rl is None else rl.sampling.max_new_tokens)


def _expert_convention(weights: AdapterSpec, matrices: tuple[MatrixShape, ...]) -> str | None:
    expert = next((matrix for matrix in matrices if matrix.kind == "expert"), None)
    if expert is None:
        return None
    return (
        f"one adapter for each of {expert.experts} experts and stored tensor, of rank "
        f"{weights.rank} / {expert.active_experts} active = {expert.rank_at(weights.rank)}"
    )


def _slots_table(plan: ResolvedPlan, shape: ModelShape) -> Table:
    rows: list[tuple[str, ...]] = []
    for slot in plan.spec.slots:
        rate = slot_rate(slot, plan.spec, shape, plan.steps)
        if isinstance(slot.weights, AdapterSpec):
            matrices = select(shape, slot.weights.targets, unembed=slot.weights.unembed)
            params, alpha = sum(m.adapter_params(slot.weights.rank) for m in matrices), f"{slot.weights.alpha:g}"
        else:
            params, alpha = full_params(shape, slot.weights), "-"
        interval = f"{rate.low:.1e} to {rate.high:.1e}"
        rows.append((slot.name, f"{params:,}", alpha, f"{slot.optim.lr:.2e}", interval))
    return Table(title="What trains", columns=("slot", "parameters", "alpha", "LR", "LR, 90 %"), rows=tuple(rows))


def _capacity_table(plan: ResolvedPlan, shape: ModelShape) -> Table:
    rows: list[tuple[str, ...]] = []
    for slot in plan.spec.slots:
        if isinstance(slot.weights, AdapterSpec):
            matrices = select(shape, slot.weights.targets, unembed=slot.weights.unembed)
            verdict = _capacity(slot.weights, matrices, plan)
            smallest = "none" if verdict.smallest_rank is None else str(verdict.smallest_rank)
            strict = "none" if verdict.strict_rank is None else str(verdict.strict_rank)
            rows.append(
                (slot.name, f"{verdict.bits:,.0f}", f"{verdict.data_bits:,.0f}", verdict.status, smallest, strict)
            )
    columns = ("slot", "bits it holds", "bits in the data", "verdict", "smallest rank", "stricter rule")
    return Table(title="Capacity", columns=columns, rows=tuple(rows))


def _cost_table(mapping: Mapping[str, Any]) -> Table:
    rows = [(label, f"{mapping[key]:.3g}") for key, label in _COSTS.items() if mapping.get(key) is not None]
    gain = mapping["one_pass_gain"]
    rows += [] if gain is None else [("all adapters in one pass", one_pass_text(gain))]
    return Table(title="Cost", columns=("what", "value"), rows=tuple(rows))


def _fits_table(mapping: dict[str, Any], memory_bytes: int | None) -> Table:
    """The same run in other formats, and the largest that the memory takes."""
    rows = [
        (f"peak of this run in {name}", size_text(size)) for name, size in mapping["memory_bytes_by_format"].items()
    ]
    if memory_bytes is not None:
        within = f"in {size_text(memory_bytes)}"
        rows += [
            (f"largest rank {within}", f"{mapping['largest_rank_that_fits']:,}"),
            (f"largest micro-batch {within}, tokens", f"{mapping['largest_microbatch_that_fits']:,}"),
        ]
    return Table(title="What would fit", columns=("what", "value"), rows=tuple(rows))


_COSTS = {
    "flops_per_token_lora": "multiply-adds a token, LoRA",
    "flops_per_token_full": "multiply-adds a token, FullFT",
    "flops_of_run": "multiply-adds of the run, all slots",
    "break_even_rank": "rank at which LoRA costs as much as FullFT",
    "adapter_bytes": "bytes of the adapter on disk, fp32",
    "seconds": "seconds at the measured or stated speed",
}
