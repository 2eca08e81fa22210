"""Append-only logs: one JSON object a line.

Guarantees: a line counts when its newline is there. A kill in the middle of a write leaves a torn last line, which
readers skip and the next write removes; a bad line anywhere else is an error that names file and line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Generic

from lowregret.errors import CheckpointError
from lowregret.store.atomic import disk_errors, sync_file, write_text
from lowregret.store.rows import RowType, encode_row, row_decoder


class Log(Generic[RowType]):
    """The rows of one type in one file."""

    def __init__(self, path: Path, row_type: type[RowType]) -> None:
        self.path = path
        self._row_type = row_type

    def append(self, rows: Iterable[RowType]) -> None:
        """Write the rows to the end in one write, and hand them to the system: they outlive a kill."""
        text = "".join(encode_row(row) + "\n" for row in rows)
        if not text:
            return
        with disk_errors(self.path), self.path.open("ab") as file:
            # The handle is opened at the end; a tail without a newline is what a kill left of an earlier write.
            if (whole := _whole_bytes(self.path)) < file.tell():
                file.truncate(whole)
            file.write(text.encode("utf-8"))

    def read(self) -> tuple[RowType, ...]:
        """All whole rows, in order; none where the file does not exist yet."""
        decode = row_decoder(self._row_type)
        rows: list[RowType] = []
        lines = self._lines()
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(decode(line.decode("utf-8")))
            except (ValueError, TypeError) as error:
                if number == len(lines):
                    break  # After a power cut the last block can hold a newline and no text before it.
                raise CheckpointError(
                    f"{self.path}: line {number} is not a row of {self._row_type.__name__} ({error}); remove the line"
                ) from error
        return tuple(rows)

    def rewrite(self, rows: Iterable[RowType]) -> None:
        """Replace all rows in one step; a log that does not exist stays so."""
        if self.path.exists():
            write_text(self.path, "".join(encode_row(row) + "\n" for row in rows))

    def sync(self) -> None:
        """Wait until everything appended so far is on the disk."""
        if self.path.exists():
            sync_file(self.path)

    def _lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        return self.path.read_bytes().split(b"\n")[:-1]


def _whole_bytes(path: Path) -> int:
    """Length of the file up to and with its last newline."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
