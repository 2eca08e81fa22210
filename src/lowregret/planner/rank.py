"""Which rank: from the data's bits for SFT, small for RL (science.md sections 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lowregret.planner.capacity import BITS_PER_PARAMETER, BITS_PER_TOKEN, adapter_params, largest_rank
from lowregret.planner.targets import select
from lowregret.specs.data import DataFacts
from lowregret.specs.shape import MatrixShape, ModelShape

MAX_RL_RANK = 32
"""Rank 1 already reaches FullFT's reward (paper, figures 6 to 8); no RL run seen asked for more."""


@dataclass(frozen=True, kw_only=True)
class RankSuggestion:
    """A rank and why.

    >>> RankSuggestion(rank=8, reason="", capped_by="nothing").rank
    8
    """

    rank: int
    reason: str
    capped_by: Literal["nothing", "memory", "limit"]
    """What kept the rank below what the data asks for; `limit` is 512 or the smallest matrix."""


def suggest_rank(
    shape: ModelShape,
    facts: DataFacts,
    *,
    task: str = "sft",
    targets: Sequence[str] = ("all",),
    unembed: bool = False,
    bits: float | None = None,
    bits_per_parameter: float = BITS_PER_PARAMETER,
    memory_rank: int | None = None,
) -> RankSuggestion:
    """Smallest power of two whose adapter holds the data's bits.

    Args:
        shape: of the base.
        facts: counts of the data; completion tokens at 1 bit each where `bits` is not given.
        task: `sft` or `rl`; RL is capped at 32.
        targets: what the adapter adapts.
        unembed: the unembedding too.
        bits: measured (or RL) information of the data.
        bits_per_parameter: what a parameter holds.
        memory_rank: largest rank that memory allows.
    """
    matrices = select(shape, targets, unembed=unembed)
    wanted = facts.num_completion_tokens * BITS_PER_TOKEN if bits is None else bits
    limit = largest_rank(matrices)
    if task == "rl":
        limit = min(limit, MAX_RL_RANK)
    asked = _power_of_two(matrices, wanted / bits_per_parameter, limit)
    reason = f"smallest power of two with {wanted:,.0f} bits / {bits_per_parameter:g} bits a parameter"
    enough = adapter_params(matrices, asked) * bits_per_parameter >= wanted
    if memory_rank is not None and asked > memory_rank:
        capped = 1 << max(0, memory_rank.bit_length() - 1)
        reason = f"{reason} is {asked}; memory allows {memory_rank}"
        return RankSuggestion(rank=capped, reason=reason, capped_by="memory")
    if not enough:
        return RankSuggestion(rank=asked, reason=f"{reason} lies beyond the limit of {limit}", capped_by="limit")
    return RankSuggestion(rank=asked, reason=reason, capped_by="nothing")


def _power_of_two(matrices: Sequence[MatrixShape], params: float, limit: int) -> int:
    """Smallest power of two with enough parameters; the largest within the limit where none has."""
    rank = 1
    while rank * 2 <= limit and adapter_params(matrices, rank) < params:
        rank *= 2
    return rank
