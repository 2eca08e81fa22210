"""Tokenised examples on disk, memory-mapped: a million of them need no memory of their own.

A folder holds `tokens.bin` (int32), `completion.bin` (one byte a token), `offsets.npy` (where each example begins and
the last ends) and `counts.npy` (tokens with loss of each); a store is a view of some rows of it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

Tokens = np.ndarray[Any, np.dtype[np.int32]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Indices = np.ndarray[Any, np.dtype[np.int64]]
TOKENS, COMPLETION, OFFSETS, COUNTS = "tokens.bin", "completion.bin", "offsets.npy", "counts.npy"


class ExampleStore:
    """Some rows of a folder of tokenised examples."""

    def __init__(self, folder: Path, indices: Indices) -> None:
        self._offsets: Indices = np.load(folder / OFFSETS)
        self._counts: Indices = np.load(folder / COUNTS)
        self._tokens = np.memmap(folder / TOKENS, dtype=np.int32, mode="r")
        self._completion = np.memmap(folder / COMPLETION, dtype=np.bool_, mode="r")
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tokens, Mask]:
        """Token ids and completion mask of one example; copies, so that a caller may write to them."""
        row = self.indices[index]
        part = slice(int(self._offsets[row]), int(self._offsets[row + 1]))
        return np.array(self._tokens[part]), np.array(self._completion[part])

    @property
    def lengths(self) -> Indices:
        """Tokens of each example."""
        return self._offsets[self.indices + 1] - self._offsets[self.indices]

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples."""
        return int(self.lengths.sum())

    @property
    def num_completion_tokens(self) -> int:
        """Tokens that carry loss; an example's first token never does."""
        return int(self._counts[self.indices].sum())

    @property
    def content_hash(self) -> str:
        """sha256 of tokens, masks and order."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            tokens, completion = self[index]
            digest.update(tokens.tobytes() + completion.tobytes() + b"|")
        return digest.hexdigest()


class ExampleWriter:
    """Writes examples one after another into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokens: BinaryIO = (folder / TOKENS).open("wb")
        self._completion: BinaryIO = (folder / COMPLETION).open("wb")
        # Arrays, not lists: 16 bytes an example.
        self._ends, self._counts = array("q", [0]), array("q")

    def __enter__(self) -> ExampleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens.close()
        self._completion.close()
        np.save(self._folder / OFFSETS, np.array(self._ends, dtype=np.int64))
        np.save(self._folder / COUNTS, np.array(self._counts, dtype=np.int64))

    def add(self, tokens: Iterable[int] | Tokens, completion: Mask) -> None:
        """Append one example."""
        ids = np.asarray(tokens, dtype=np.int32)
        self._tokens.write(ids.tobytes())
        self._completion.write(completion.astype(np.bool_).tobytes())
        self._ends.append(self._ends[-1] + ids.size)
        self._counts.append(int(completion[1:].sum()))
