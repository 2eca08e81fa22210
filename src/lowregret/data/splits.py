"""Train, validation and test by a hash of the prompt: repeated prompts stay on one side, and every run on the same data
has the same splits, whatever its other settings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowregret.errors import DataError

Indices = np.ndarray[Any, np.dtype[np.int64]]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]
DEFAULT_SHARE, DEFAULT_MOST = 0.05, 512


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Row indices of each split, ascending.

    >>> Splits(train=np.array([0]), validation=np.array([1]), test=np.array([2]), overlaps=0).test.size
    1
    """

    train: Indices
    validation: Indices
    test: Indices
    overlaps: int
    """Rows of an own test split that were dropped because their prompt is in the training data."""


def prompt_hash(prompt: str, seed: int) -> int:
    """64 bits that decide a row's split; whitespace at the ends does not count."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{prompt.strip()}".encode(), digest_size=8).digest(), "little")


def split(
    hashes: Hashes, own_test: Hashes | None, *, validation_size: int | None, test_size: int | None, where: str
) -> Splits:
    """Choose the splits.

    Args:
        hashes: prompt hash of each row.
        own_test: prompt hashes of the data set's own test split; its rows follow the others in index.
        validation_size, test_size: rows; None is 5 %, at most 512. Of an own test split: all, at most 512.

    Raises:
        DataError: the held-out rows leave nothing to train on.
    """
    number = len(hashes)
    default = min(DEFAULT_MOST, max(1, round(DEFAULT_SHARE * number)))
    wanted_validation = default if validation_size is None else validation_size
    wanted_test = 0 if own_test is not None else default if test_size is None else test_size
    if wanted_validation + wanted_test >= number:
        raise DataError(
            f"{where}: {wanted_test} test and {wanted_validation} validation examples leave nothing of {number} "
            "to train on; lower --test-size and --validation-size"
        )
    order = np.argsort(hashes, kind="stable").astype(np.int64)
    test_end = _end_of_group(hashes[order], wanted_test)
    validation_end = _end_of_group(hashes[order], test_end + wanted_validation)
    if validation_end >= number:
        raise DataError(
            f"{where}: too few different prompts in {number} rows to hold some out; add data, or lower --test-size"
        )
    test, validation, train = np.split(order, [test_end, validation_end])
    overlaps = 0
    if own_test is not None:
        test, overlaps = _usable(own_test, hashes, test_size, where)
    return Splits(train=np.sort(train), validation=np.sort(validation), test=np.sort(test), overlaps=overlaps)


def _usable(own_test: Hashes, hashes: Hashes, test_size: int | None, where: str) -> tuple[Indices, int]:
    """Rows of an own test split whose prompts stand nowhere else, as many as wanted and chosen by their hashes; and how
    many rows have their prompt in the training data."""
    seen = np.isin(own_test, hashes)
    usable = np.flatnonzero(~seen)
    if not usable.size:
        raise DataError(
            f"{where}: every prompt of the test split is in the training data too; leave the test split out, "
            "so that one is held out of the training data"
        )
    if test_size is not None and test_size > usable.size:
        raise DataError(
            f"{where}: test_size {test_size} is larger than the test split's {usable.size} usable rows; lower it"
        )
    most = DEFAULT_MOST if test_size is None else test_size
    usable = usable[np.argsort(own_test[usable], kind="stable")[:most]]
    return len(hashes) + usable, int(seen.sum())


def _end_of_group(ordered: Hashes, wanted: int) -> int:
    """The first place at or after `wanted` where a new prompt begins."""
    end = wanted
    while 0 < end < len(ordered) and ordered[end] == ordered[end - 1]:
        end += 1
    return end
