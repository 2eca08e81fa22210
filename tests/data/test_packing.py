"""Packed batches: every token stands where it stood, no label crosses a boundary, the budget holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowregret.batches import PackedBatch, TokenizedExample
from lowregret.data.packing import microbatches, pack

NAMES = ("r1", "r8", "full")


@st.composite
def examples(draw: st.DrawFn, longest: int = 12) -> TokenizedExample:
    length = draw(st.integers(1, longest))
    tokens = draw(st.lists(st.integers(1, 999), min_size=length, max_size=length))
    completion = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    return TokenizedExample(tokens=np.array(tokens, dtype=np.int32), completion=np.array(completion))


by_slots = st.dictionaries(st.sampled_from(NAMES), st.lists(examples(), min_size=1, max_size=6), min_size=1)


def documents_of(batch: PackedBatch) -> list[tuple[str, list[int]]]:
    parts = enumerate(zip(batch.segment_slots, batch.tokens.split(list(batch.segment_lengths)), strict=True))
    return [(slot, part.tolist()) for index, (slot, part) in parts if index not in batch.padding]


@given(st.lists(examples(), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_labels_stay_within_their_document(documents: list[TokenizedExample]) -> None:
    batch = pack([("r8", document) for document in documents])
    start = 0
    for document, length in zip(documents, batch.segment_lengths, strict=True):
        part = slice(start, start + length)
        assert batch.tokens[part].tolist() == document.tokens.tolist()
        assert batch.positions[part].tolist() == list(range(length))
        assert batch.targets[part].tolist() == [*document.tokens[1:].tolist(), 0]
        assert batch.weights[part].tolist() == [*document.completion[1:].astype(float).tolist(), 0.0]
        start += length
    assert start == len(batch.tokens)
    assert int(batch.weights.sum()) == sum(document.num_completion_tokens for document in documents)


@given(by_slot=by_slots, budget=st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_microbatches_keep_budget_order_and_slots(by_slot: dict[str, list[TokenizedExample]], budget: int) -> None:
    batches = microbatches(by_slot, budget)
    for batch in batches:
        real = sum(batch.num_real_tokens.values())
        assert real <= budget or len(documents_of(batch)) == 1
        # Rounding adds less than one row in sixteen, and none of it carries a label.
        assert real <= len(batch.tokens) <= real * 17 / 16
        assert not any(batch.weights.split(batch.segment_lengths)[index].any() for index in batch.padding)
    given_order = [(slot, d.tokens.tolist()) for slot, documents in by_slot.items() for d in documents]
    assert [document for batch in batches for document in documents_of(batch)] == given_order
    for batch in batches:
        assert sum(batch.slot_lengths.values()) == len(batch.tokens)
        assert sum(a != b for a, b in zip(batch.segment_slots, batch.segment_slots[1:], strict=False)) == (
            len(batch.slots) - 1
        )


def test_what_fits_is_one_batch_and_the_rest_is_even() -> None:
    documents = [TokenizedExample(tokens=np.arange(10), completion=np.ones(10, dtype=bool)) for _ in range(12)]
    assert len(microbatches({"a": documents[:6], "b": documents[6:]}, 120)) == 1
    assert [len(batch.tokens) for batch in microbatches({"a": documents}, 110)] == [60, 60]
    assert microbatches({}, 10) == []


def test_what_is_no_batch() -> None:
    document = TokenizedExample(tokens=np.array([1, 2]), completion=np.array([False, True]))
    with pytest.raises(ValueError, match="needs documents"):
        pack([])
    with pytest.raises(ValueError, match="those of each slot together"):
        pack([("a", document), ("b", document), ("a", document)])
