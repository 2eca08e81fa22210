"""Data sets that are made, not read: facts of exactly known information content, and reasoning-gym's tasks."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lowregret.data import micro
from lowregret.errors import DataError

VERSION = 1
"""Raised whenever the same name, size and seed would give other rows: part of the content hash."""

GYM = "reasoning-gym:"
DEFAULT_ROWS = 2000

FACT_ATTRIBUTES = {"birthplace": 256, "profession": 128, "employer": 256, "hobby": 64, "year of birth": 64}
"""Attribute -> number of equally likely values; a person carries the sum of their log2, 35 bits."""
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def is_generated(source: str) -> bool:
    """Whether a source's name is that of a generated set."""
    return source == "facts" or source in micro.SOURCES or source.startswith(GYM)


def check(source: str, size: int | None) -> int:
    """Number of rows that will be made.

    Raises:
        DataError: no such task, or the package is missing, or the size is not positive.
    """
    if size is not None and size < 1:
        raise DataError(f"data.limit is {size}; a generated set needs at least 1 row")
    if source.startswith(GYM):
        _gym_task(source.removeprefix(GYM))
    return size or DEFAULT_ROWS


def rows(source: str, *, size: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Rows with `question` and `answer`, or with `text`; the same for the same name, size and seed."""
    number = check(source, size)
    if source in micro.SOURCES:
        return micro.rows(source, number, seed)
    return _facts(number, seed) if source == "facts" else _gym(source.removeprefix(GYM), number, seed)


def fact_bits(num_rows: int) -> float:
    """Information in `num_rows` rows of `facts`, bits: sum of log2 of the number of values of each row's attribute.

    >>> fact_bits(5)
    35.0
    """
    sizes = list(FACT_ATTRIBUTES.values())
    return sum(math.log2(sizes[row % len(sizes)]) for row in range(num_rows))


def _facts(number: int, seed: int) -> Iterator[dict[str, Any]]:
    """One row an attribute of a person; values are drawn uniformly and independently, so nothing can be guessed."""
    rng = np.random.default_rng(seed)
    values = {name: _words(size, rng) for name, size in FACT_ATTRIBUTES.items()}
    people = _words(-(-number // len(FACT_ATTRIBUTES)), rng, syllables=5)
    made = 0
    for person in people:
        for attribute, words in values.items():
            if made == number:
                return
            made += 1
            answer = words[int(rng.integers(len(words)))]
            yield {"question": f"{person.title()}, {attribute}:", "answer": answer}


def _words(number: int, rng: np.random.Generator, syllables: int = 3) -> list[str]:
    """Distinct made-up words."""
    words: dict[str, None] = {}
    while len(words) < number:
        letters = [CONSONANTS[int(rng.integers(14))] + VOWELS[int(rng.integers(5))] for _ in range(syllables)]
        words["".join(letters)] = None
    return list(words)


def gym_problems(source: str, *, size: int | None, seed: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of a reasoning-gym task, each with what the task's own scorer wants: the task's name and the whole item."""
    number, task = check(source, size), source.removeprefix(GYM)
    return ((_gym_row(item), {"task": task, "item": item}) for item in _gym_items(task, number, seed))


def _gym(task: str, number: int, seed: int) -> Iterator[dict[str, Any]]:
    return (_gym_row(item) for item in _gym_items(task, number, seed))


def _gym_items(task: str, number: int, seed: int) -> Iterator[dict[str, Any]]:
    import reasoning_gym

    yield from reasoning_gym.create_dataset(task, size=number, seed=seed)


def _gym_row(item: Mapping[str, Any]) -> dict[str, Any]:
    # Some tasks have no single answer; such a row is dropped and counted like any other without one.
    answer = None if item["answer"] is None else str(item["answer"])
    return {"question": str(item["question"]), "answer": answer}


def _gym_task(task: str) -> None:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise DataError(f"data {GYM}{task} needs the package reasoning-gym: pip install '.[rl]'") from error
    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=3) or sorted(DATASETS)[:5]
        raise DataError(f"reasoning-gym has no task {task!r}; near ones: {', '.join(near)}")
