"""Documents of many slots into packed batches: no document split, no label across a boundary, rows in round numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from operator import itemgetter

import numpy as np
import torch

from lowregret.batches import PackedBatch, TokenizedExample
from lowregret.data.examples import ExampleStore

MOST_ROUNDING = 128
LEAST_SHARE = 16
"""A slot's rows are rounded up to a power of two of at most one in this many of them: 3 % more on average."""


def rounding(rows: int) -> int:
    """What a slot's number of rows is rounded up to a multiple of.

    On a CPU every new shape of a matrix product costs 12 ms and is kept: on SmolLM2-135M a micro-batch of a new length
    leaves about 18 MiB behind, so that memory would grow with every step (`docs/log.md`).

    >>> rounding(20), rounding(256), rounding(2000)
    (1, 16, 64)
    """
    return min(MOST_ROUNDING, 1 << max(0, (rows // LEAST_SHARE).bit_length() - 1))


def pack(documents: Sequence[tuple[str, TokenizedExample]]) -> PackedBatch:
    """One packed batch of (slot, document); the documents of a slot must stand together.

    The token at t predicts the next one of its document, with weight 1 where that one is a completion token. A
    document's last token predicts nothing.

    Raises:
        ValueError: no documents, or a slot's documents do not stand together.
    """
    return _packed(documents, frozenset())


def _packed(documents: Sequence[tuple[str, TokenizedExample]], padding: frozenset[int]) -> PackedBatch:
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
        positions=torch.from_numpy(np.concatenate([_positions(example) for _, example in documents])),
        targets=torch.from_numpy(targets),
        weights=torch.from_numpy(weights),
        segment_lengths=lengths,
        segment_slots=tuple(slots),
        padding=padding,
        branches={index: example.branches for index, (_, example) in enumerate(documents) if example.branches},
    )


def _positions(example: TokenizedExample) -> np.ndarray:
    """Of each token in its document.

    >>> _positions(TokenizedExample(tokens=np.arange(6), completion=np.zeros(6, np.bool_), branches=(1, 3))).tolist()
    [0, 1, 2, 2, 3, 4]
    """
    prefix = len(example.tokens) - sum(example.branches)
    return np.concatenate([np.arange(prefix), *(np.arange(prefix, prefix + length) for length in example.branches)])


def pack_rounded(documents: Sequence[tuple[str, TokenizedExample]]) -> PackedBatch:
    """`pack`, with every slot's rows rounded up (`rounding`) by a segment of zeros without labels.

    Raises:
        ValueError: as `pack`.
    """
    filled: list[tuple[str, TokenizedExample]] = []
    padding: set[int] = set()
    for slot, group in groupby(documents, key=itemgetter(0)):
        own = list(group)
        rows = sum(len(example.tokens) for _, example in own)
        filled += own
        missing = -rows % rounding(rows)
        if missing:
            padding.add(len(filled))
            empty = TokenizedExample(tokens=np.zeros(missing, np.int32), completion=np.zeros(missing, np.bool_))
            filled.append((slot, empty))
    return _packed(filled, frozenset(padding))


def microbatches(by_slot: Mapping[str, Sequence[TokenizedExample]], tokens_per_microbatch: int) -> list[PackedBatch]:
    """All slots' documents of a step in as few batches as the budget allows, of about equal size, in order.

    A document longer than the budget gets a batch of its own. Where one branches its tokens count as attention sees
    them, so that a batch never holds more than the budget's tokens for attention either.
    """
    documents = [(slot, example) for slot, examples in by_slot.items() for example in examples]
    total = sum(example.num_attended for _, example in documents)
    target = total / max(1, -(-total // tokens_per_microbatch))
    batches: list[list[tuple[str, TokenizedExample]]] = []
    size = 0
    for slot, example in documents:
        length = example.num_attended
        # A batch is closed when it would pass the budget, or when it has its even share already.
        if not batches or size + length > tokens_per_microbatch or size + length / 2 > target:
            batches.append([])
            size = 0
        batches[-1].append((slot, example))
        size += length
    return [pack_rounded(batch) for batch in batches]


def example_of(store: ExampleStore, index: int) -> TokenizedExample:
    """One example as a tensor noun's ingredient."""
    tokens, completion = store[index]
    return TokenizedExample(tokens=tokens, completion=completion)


def examples_of(store: ExampleStore) -> list[TokenizedExample]:
    """All examples of a held-out split; these are few."""
    return [example_of(store, index) for index in range(len(store))]
