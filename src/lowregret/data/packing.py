"""Documents of many slots into packed batches without padding: no document split, no label across a boundary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch

from lowregret.batches import PackedBatch, TokenizedExample
from lowregret.data.examples import ExampleStore


def pack(documents: Sequence[tuple[str, TokenizedExample]]) -> PackedBatch:
    """One packed batch of (slot, document); the documents of a slot must stand together.

    The token at t predicts the next one of its document, with weight 1 where that one is a completion token. A
    document's last token predicts nothing.

    Raises:
        ValueError: no documents, or a slot's documents do not stand together.
    """
    slots = [slot for slot, _ in documents]
    changes = 1 + sum(a != b for a, b in pairwise(slots))
    if not documents or changes != len(set(slots)):
        raise ValueError("a packed batch needs documents, those of each slot together")
    lengths = tuple(len(example.tokens) for _, example in documents)
    tokens = np.concatenate([example.tokens for _, example in documents]).astype(np.int64)
    completion = np.concatenate([example.completion for _, example in documents])
    last = np.cumsum(lengths) - 1
    targets, weights = np.roll(tokens, -1), np.roll(completion, -1).astype(np.float32)
    targets[last], weights[last] = 0, 0.0
    return PackedBatch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])),
        targets=torch.from_numpy(targets),
        weights=torch.from_numpy(weights),
        segment_lengths=lengths,
        segment_slots=tuple(slots),
    )


def microbatches(by_slot: Mapping[str, Sequence[TokenizedExample]], tokens_per_microbatch: int) -> list[PackedBatch]:
    """All slots' documents of a step in as few batches as the budget allows, of about equal size, in order.

    A document longer than the budget gets a batch of its own.
    """
    documents = [(slot, example) for slot, examples in by_slot.items() for example in examples]
    total = sum(len(example.tokens) for _, example in documents)
    target = total / max(1, -(-total // tokens_per_microbatch))
    batches: list[list[tuple[str, TokenizedExample]]] = []
    size = 0
    for slot, example in documents:
        length = len(example.tokens)
        # A batch is closed when it would pass the budget, or when it has its even share already.
        if not batches or size + length > tokens_per_microbatch or size + length / 2 > target:
            batches.append([])
            size = 0
        batches[-1].append((slot, example))
        size += length
    return [pack(batch) for batch in batches]


def example_of(store: ExampleStore, index: int) -> TokenizedExample:
    """One example as a tensor noun's ingredient."""
    tokens, completion = store[index]
    return TokenizedExample(tokens=tokens, completion=completion)


def examples_of(store: ExampleStore) -> list[TokenizedExample]:
    """All examples of a held-out split; these are few."""
    return [example_of(store, index) for index in range(len(store))]
