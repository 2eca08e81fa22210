"""Held-out negative log-likelihood of every slot on the same examples, many slots in one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowregret.adapters.routing import Routing
from lowregret.batches import TokenizedExample
from lowregret.data.packing import microbatches
from lowregret.models.causal_lm import CausalLM
from lowregret.training.memory import keep_freed_memory
from lowregret.training.step import batch_nll

BASE = "base"
"""Name under which the model without any adapter is reported."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """NLL of one slot on one split.

    >>> HeldOut(nll_sum=20.0, tokens=10, by_example=(12.0, 8.0)).nll
    2.0
    """

    nll_sum: float
    """Summed over completion tokens, nats."""
    tokens: int
    """Completion tokens."""
    by_example: tuple[float, ...]
    """Summed NLL of each example in order, nats: what a paired bootstrap needs."""

    @property
    def nll(self) -> float:
        """Mean nats a completion token."""
        return self.nll_sum / self.tokens


def evaluate(
    model: CausalLM, examples: Sequence[TokenizedExample], slots: Sequence[str], tokens_per_microbatch: int
) -> dict[str, HeldOut]:
    """NLL of each slot on the same examples.

    Args:
        slots: names; `base` routes to no adapter. A model without a bank is evaluated as it is under each name.
    """
    by_slot: dict[str, list[float]] = {slot: [] for slot in slots}
    for batch in microbatches(dict.fromkeys(slots, examples), tokens_per_microbatch):
        routing = Routing.from_lengths({None if s == BASE else s: n for s, n in batch.slot_lengths.items()})
        losses = batch_nll(model, batch, routing).double().cpu()
        start = 0
        segments = zip(batch.segment_slots, batch.weights.split(list(batch.segment_lengths)), strict=True)
        for index, (slot, part) in enumerate(segments):
            if index in batch.padding:
                continue
            count = int((part != 0).sum())
            by_slot[slot].append(float(losses[start : start + count].sum()))
            start += count
        keep_freed_memory(model.device)
    tokens = sum(example.num_completion_tokens for example in examples)
    return {
        slot: HeldOut(nll_sum=sum(values), tokens=tokens, by_example=tuple(values)) for slot, values in by_slot.items()
    }


def evaluation_steps(steps: int, every: int, *, early: bool = True) -> frozenset[int]:
    """0, then (`early`) powers of two up to 64, then every `every`, and the last.

    >>> sorted(evaluation_steps(20, 8))
    [0, 1, 2, 4, 8, 16, 20]
    """
    powers = {1 << k for k in range(steps.bit_length()) if (1 << k) <= min(steps, 64)} if early else set[int]()
    return frozenset(powers | set(range(0, steps + 1, every)) | {steps})
