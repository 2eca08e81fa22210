"""Splits that never leak, orders that need no history, examples that read back as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowregret.data.examples import ExampleStore, ExampleWriter
from lowregret.data.order import ExampleOrder
from lowregret.data.splits import prompt_hash, split
from lowregret.errors import DataError


@given(
    prompts=st.lists(st.integers(0, 30), min_size=3, max_size=80),
    own=st.none() | st.lists(st.integers(20, 60), min_size=1, max_size=20),
    sizes=st.tuples(st.none() | st.integers(1, 8), st.none() | st.integers(1, 8)),
)
@settings(max_examples=80, deadline=None)
def test_no_prompt_stands_on_two_sides(
    prompts: list[int], own: list[int] | None, sizes: tuple[int | None, int | None]
) -> None:
    hashes = np.array([prompt_hash(str(prompt), 0) for prompt in prompts], dtype=np.uint64)
    own_hashes = None if own is None else np.array([prompt_hash(str(prompt), 0) for prompt in own], dtype=np.uint64)
    try:
        made = split(hashes, own_hashes, validation_size=sizes[0], test_size=sizes[1], where="d")
    except DataError:
        held_out = (sizes[0] or 1) + (0 if own is not None else sizes[1] or 1)
        few = len(set(prompts)) < 3 or held_out + max(prompts.count(p) for p in prompts) * 2 > len(prompts)
        wanted = 0 if own is None else sizes[1] or 1
        assert few or len([p for p in own or [] if p not in prompts]) < wanted
        return
    everything = prompts + (own or [])
    sides = [{everything[row] for row in rows} for rows in (made.train, made.validation, made.test)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert all(sides)
    rows = np.concatenate([made.train, made.validation, made.test])
    assert len(set(rows.tolist())) == len(rows)
    if own is None:
        assert len(rows) == len(prompts)
    else:
        assert made.overlaps == sum(prompt in prompts for prompt in own)
        assert made.test.min() >= len(prompts)
    assert len(made.validation) >= (1 if sizes[0] is None else sizes[0])


@given(st.permutations(range(40)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_rows_changes_no_split(order: list[int]) -> None:
    hashes = np.array([prompt_hash(str(k // 2), 3) for k in range(40)], dtype=np.uint64)
    straight = split(hashes, None, validation_size=5, test_size=None, where="d")
    turned = split(hashes[order], None, validation_size=5, test_size=None, where="d")
    for name in ("train", "validation", "test"):
        rows = np.array(order)[getattr(turned, name)]
        assert sorted(rows.tolist()) == getattr(straight, name).tolist()


@pytest.mark.parametrize(("there", "wanted", "left"), [(700, None, 512), (40, None, 40), (700, 600, 600)])
def test_an_own_test_split_is_capped_by_hash(there: int, wanted: int | None, left: int) -> None:
    hashes = np.array([prompt_hash(str(k), 0) for k in range(100)], dtype=np.uint64)
    own = np.array([prompt_hash(f"own {k}", 0) for k in range(there)], dtype=np.uint64)
    made = split(hashes, own, validation_size=5, test_size=wanted, where="d")
    assert sorted(own[made.test - 100].tolist()) == sorted(own.tolist())[:left]
    turned = split(hashes, own[::-1], validation_size=5, test_size=wanted, where="d")
    assert set(own[::-1][turned.test - 100].tolist()) == set(own[made.test - 100].tolist())


def test_blanks_at_the_ends_of_a_prompt_do_not_count() -> None:
    assert prompt_hash(" 2 + 2?\n", 0) == prompt_hash("2 + 2?", 0) != prompt_hash("2 + 2?", 1)


@given(num=st.integers(1, 20), batch_size=st.integers(1, 30), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation_wherever_batches_end(num: int, batch_size: int, seed: int) -> None:
    steps = -(-3 * num // batch_size)
    order = ExampleOrder(num, seed)
    stream = np.concatenate([order.batch(step, batch_size) for step in range(steps)])
    for epoch in range(3):
        assert sorted(stream[epoch * num : (epoch + 1) * num].tolist()) == list(range(num))
    # Without history: any step of a new object, and steps in any order.
    for step in reversed(range(steps)):
        expected = stream[step * batch_size : (step + 1) * batch_size].tolist()
        assert ExampleOrder(num, seed).batch(step, batch_size).tolist() == expected
        assert order.batch(step, batch_size).tolist() == expected


def test_epochs_and_seeds_differ() -> None:
    order = ExampleOrder(100, 0)
    assert order.batch(0, 100).tolist() != order.batch(1, 100).tolist()
    assert order.batch(0, 100).tolist() != ExampleOrder(100, 1).batch(0, 100).tolist()


def write(folder: Path, lengths: list[int]) -> list[tuple[list[int], list[bool]]]:
    rng = np.random.default_rng(0)
    made: list[tuple[list[int], list[bool]]] = []
    folder.mkdir()
    with ExampleWriter(folder) as writer:
        for length in lengths:
            tokens, completion = rng.integers(0, 200_000, length), rng.random(length) < 0.5
            writer.add(tokens, completion)
            made.append((tokens.tolist(), completion.tolist()))
    return made


def test_examples_read_back_as_written(tmp_path: Path) -> None:
    made = write(tmp_path / "a", [3, 1, 7, 2])
    rows = np.array([2, 0, 3])
    store = ExampleStore(tmp_path / "a", rows)
    for index, row in enumerate(rows):
        tokens, completion = store[index]
        assert (tokens.tolist(), completion.tolist()) == made[row]
    assert store.lengths.tolist() == [7, 3, 2]
    assert (len(store), store.num_tokens) == (3, 12)
    assert store.num_completion_tokens == sum(sum(made[row][1][1:]) for row in rows)
    with pytest.raises(IndexError):
        store[3]


def test_a_caller_may_write_to_what_it_gets(tmp_path: Path) -> None:
    write(tmp_path / "a", [4])
    store = ExampleStore(tmp_path / "a", np.array([0]))
    before = store.content_hash
    store[0][0][:] = 0
    store[0][1][:] = False
    assert store.content_hash == before


def test_the_hash_of_a_store_follows_its_rows_and_their_order(tmp_path: Path) -> None:
    write(tmp_path / "a", [4, 5])
    write(tmp_path / "b", [4, 5])

    def digest(name: str, rows: list[int]) -> str:
        return ExampleStore(tmp_path / name, np.array(rows, dtype=np.int64)).content_hash

    assert digest("a", [0, 1]) == digest("b", [0, 1])
    assert len({digest("a", [0, 1]), digest("a", [1, 0]), digest("a", [0]), digest("a", [])}) == 4
