"""One writer for a run directory.

Guarantee: while one holder lives no other process (or second holder in this process) gets the lock; the system
releases it when the holder ends, kill -9 included, so a stale lock does not exist.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from lowregret.errors import CheckpointError


class WriterLock:
    """The right to write into a run directory, taken at the first write and held until `release`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._release: weakref.finalize[[int], WriterLock] | None = None

    def acquire(self) -> None:
        """Take the lock; nothing happens where it is held already."""
        if self._release is not None:
            return
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise CheckpointError(
                f"{self._path.parent}: another process is training in this run directory; wait for it or stop it"
            ) from error
        self._release = weakref.finalize(self, os.close, handle)

    def release(self) -> None:
        """Give the lock back."""
        if self._release is not None:
            self._release()
            self._release = None


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock now."""
    if not path.exists():
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
