"""What would fit: the same run in other formats, and the largest rank and micro-batch for a given memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lowregret.planner.capacity import largest_rank
from lowregret.planner.memory import (
    BaseFormat,
    DType,
    MemoryQuestion,
    largest_micro_batch,
    largest_rank_that_fits,
    memory,
)
from lowregret.planner.resolve import cache_of, dtype_of, memory_question
from lowregret.planner.targets import select
from lowregret.specs.adapter import AdapterSpec
from lowregret.specs.data import DataFacts
from lowregret.specs.hardware import DeviceFacts
from lowregret.specs.plan import ResolvedPlan
from lowregret.specs.run import RunSpec
from lowregret.specs.shape import ModelShape

FORMATS: dict[str, tuple[DType, BaseFormat | None]] = {
    "fp32": ("fp32", None),
    "bf16": ("bf16", None),
    "4-bit base": ("bf16", "nf4"),
}
"""Format of the run by name: working format, and the base's where it is another."""


@dataclass(frozen=True, kw_only=True)
class Fits:
    """The largest that a memory takes, everything else as in the plan.

    >>> Fits(rank=64, tokens_per_microbatch=4096).rank
    64
    """

    rank: int
    """Of the first adapter; 0 where not even rank 1 fits, or where the plan has no adapter."""
    tokens_per_microbatch: int


def memory_rank(
    spec: RunSpec,
    shape: ModelShape,
    facts: DataFacts,
    hardware: DeviceFacts,
    *,
    targets: tuple[str, ...] = ("all",),
    unembed: bool = False,
) -> int | None:
    """Largest rank that fits beside one example of the longest kind; None where not even rank 1 does.

    A run that does not fit at any rank is refused by `resolve`, which names the nearest one that does.
    """
    adapter = AdapterSpec(rank=1, targets=targets, unembed=unembed)
    question = MemoryQuestion(
        slots=(adapter,),
        dtype=dtype_of(spec, hardware),
        tokens=facts.longest,
        device=hardware.kind,
        bf16_fast=hardware.bf16_fast,
        checkpointing=spec.hardware.activation_checkpointing,
        cache=cache_of(spec, facts),
    )
    limit = largest_rank(select(shape, targets, unembed=unembed))
    available = spec.hardware.memory_bytes or hardware.memory_bytes
    return largest_rank_that_fits(shape, question, memory_bytes=available, limit=limit) or None


def memory_alternatives(plan: ResolvedPlan, shape: ModelShape) -> dict[str, int]:
    """Predicted peak of the same run by format, with and without activation checkpointing."""
    question = memory_question(plan.spec, plan.facts, plan.tokens_per_microbatch, plan.bf16_fast)
    totals: dict[str, int] = {}
    for name, (dtype, base) in FORMATS.items():
        for checkpointing in (False, True):
            other = replace(question, dtype=dtype, base=base, checkpointing=checkpointing)
            totals[f"{name}, checkpointing" if checkpointing else name] = memory(shape, other)["total"]
    return totals


def what_fits(plan: ResolvedPlan, shape: ModelShape, *, memory_bytes: int) -> Fits:
    """Largest rank at the plan's micro-batch, and largest micro-batch at the plan's ranks."""
    question = memory_question(plan.spec, plan.facts, plan.tokens_per_microbatch, plan.bf16_fast)
    rank = 0
    if isinstance(question.slots[0], AdapterSpec):
        first = question.slots[0]
        limit = largest_rank(select(shape, first.targets, unembed=first.unembed))
        rank = largest_rank_that_fits(shape, question, memory_bytes=memory_bytes, limit=limit)
    return Fits(rank=rank, tokens_per_microbatch=largest_micro_batch(shape, question, memory_bytes=memory_bytes))
