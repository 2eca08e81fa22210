"""Files that are either whole or not there, even after a kill or a power cut.

Guarantees: a file appears under its name only when its bytes are on the disk (temporary file, fsync, rename, fsync
of the folder). A full disk is a `CapacityError` that names the path, and what was there before stays as it was.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from lowregret.errors import CapacityError, CheckpointError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def write_bytes(path: Path, data: bytes) -> None:
    """Put the bytes under the name in one step."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Put the text under the name in one step, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def sync_file(path: Path) -> None:
    """Wait until the bytes of a finished file are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk; a rename is not durable before."""
    sync_file(path)


@contextmanager
def disk_errors(path: Path) -> Generator[None, None, None]:
    """Turn a full disk or a forbidden path into a typed error that names the path; other errors pass."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            free = shutil.disk_usage(_existing(path)).free / 1e6
            raise CapacityError(
                f"{path}: no space left to write it ({free:.0f} MB free); free some disk or choose another folder"
            ) from error
        if isinstance(error, OSError) and error.errno in _REFUSED:
            raise CheckpointError(
                f"{path}: can't be written ({error.strerror}); choose a folder that you may write to"
            ) from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether the error says that the disk, the quota or the largest file size is reached."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    # The safetensors writer is Rust and reports the system's error in its text only.
    return any(f"(os error {code})" in str(error) for code in _FULL)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
