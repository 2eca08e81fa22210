"""Packed batches: every token stands where it stood, no label crosses a boundary, the budget holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowregret.batches import PackedBatch, TokenizedExample
from lowregret.data.packing import microbatches, pack

NAMES = ("r1", "r8", "full")
Marked = list[tuple[int, bool]]
"""Tokens, and whether each is of the completion. Examples are made in the tests: hypothesis does not allow that
anything made while it draws looks at random numbers, and the check of their types does."""

marked = st.lists(st.tuples(st.integers(1, 999), st.booleans()), min_size=1, max_size=12)
by_slots = st.dictionaries(st.sampled_from(NAMES), st.lists(marked, min_size=1, max_size=6), min_size=1)
trees = st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), max_size=4).filter(lambda lengths: len(lengths) != 1))
"""Lengths of a prefix and of its branches."""


def example_of(document: Marked) -> TokenizedExample:
    tokens, completion = zip(*document, strict=True)
    return TokenizedExample(tokens=np.array(tokens, dtype=np.int32), completion=np.array(completion))


def tree_of(prefix: int, branches: list[int]) -> TokenizedExample:
    length = prefix + sum(branches)
    return TokenizedExample(
        tokens=np.arange(1, length + 1, dtype=np.int32), completion=np.zeros(length, bool), branches=tuple(branches)
    )


def documents_of(batch: PackedBatch) -> list[tuple[str, list[int]]]:
    parts = enumerate(zip(batch.segment_slots, batch.tokens.split(list(batch.segment_lengths)), strict=True))
    return [(slot, part.tolist()) for index, (slot, part) in parts if index not in batch.padding]


@given(st.lists(marked, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_labels_stay_within_their_document(drawn: list[Marked]) -> None:
    documents = [example_of(document) for document in drawn]
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


@given(drawn=by_slots, budget=st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_microbatches_keep_budget_order_and_slots(drawn: dict[str, list[Marked]], budget: int) -> None:
    by_slot = {slot: [example_of(document) for document in documents] for slot, documents in drawn.items()}
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


@pytest.mark.parametrize(("branches", "marked"), [((3,), False), ((3, 0), False), ((2, 3), False), ((1, 2), True)])
def test_what_is_no_tree(branches: tuple[int, ...], marked: bool) -> None:
    tokens = np.arange(5, dtype=np.int32)
    with pytest.raises(AssertionError):
        TokenizedExample(tokens=tokens, completion=np.full(5, marked), branches=branches)


@given(drawn=st.lists(trees, min_size=1, max_size=6), budget=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_a_branch_goes_on_where_its_prefix_ends(drawn: list[tuple[int, list[int]]], budget: int) -> None:
    documents = [tree_of(*tree) for tree in drawn]
    left = list(drawn)
    for batch in microbatches({"a": documents}, budget):
        own = [index for index in range(len(batch.segment_lengths)) if index not in batch.padding]
        parts = batch.positions.split(list(batch.segment_lengths))
        attended = 0
        for segment in own:
            prefix, branches = left.pop(0)
            expected = [*range(prefix), *(prefix + at for length in branches for at in range(length))]
            assert parts[segment].tolist() == expected
            assert batch.branches.get(segment, ()) == tuple(branches)
            attended += prefix * max(1, len(branches)) + sum(branches)
        assert attended <= budget or len(own) == 1
        assert set(batch.branches) <= set(own)
    assert not left
