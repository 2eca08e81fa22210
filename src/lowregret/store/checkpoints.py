"""Checkpoint folders: `checkpoints/step-000010/` with a manifest of checksums.

Guarantees: a folder under that name was complete when it got the name; a checkpoint that was damaged since is found
by its checksums and passed over for the one before. Whoever trains decides what the files hold (safetensors and
JSON); nothing here reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from lowregret.errors import CheckpointError
from lowregret.store.atomic import disk_errors, sync_file, sync_folder, write_text

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{6,})")
_LEFTOVER = ".tmp-"


@contextmanager
def writing_checkpoint(root: Path, step: int, *, keep: int) -> Generator[Path, None, None]:
    """A folder to write a checkpoint's files into; it gets its name when the block ends without an error.

    Afterwards only the `keep` newest checkpoints up to this step are left.
    """
    assert keep >= 1
    name = checkpoint_name(step)
    temporary, final = root / f"{_LEFTOVER}{name}", root / name
    with disk_errors(final):
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        temporary.mkdir()
        try:
            yield temporary
            _seal(temporary, step)
            _put_aside(final)
            os.replace(temporary, final)
            sync_folder(root)
        finally:
            _remove_leftovers(root)
        for _, older in [found for found in list_checkpoints(root) if found[0] <= step][keep:]:
            _put_aside(older)
        _remove_leftovers(root)


def latest_checkpoint(root: Path, on_skip: Callable[[str], None]) -> tuple[int, Path] | None:
    """Step and folder of the newest checkpoint that is whole; `on_skip` hears why a newer one is not used."""
    for step, folder in list_checkpoints(root):
        flaw = find_flaw(folder)
        if flaw is None:
            return step, folder
        on_skip(f"checkpoint {folder} is damaged ({flaw}); going on with the one before")
    return None


def list_checkpoints(root: Path) -> list[tuple[int, Path]]:
    """Step and folder of each checkpoint, newest first, unverified."""
    if not root.is_dir():
        return []
    matches = [(_NAME.fullmatch(folder.name), folder) for folder in root.iterdir()]
    return sorted(((int(match[1]), folder) for match, folder in matches if match), reverse=True)


def find_flaw(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is as it was written."""
    try:
        files = _read_manifest(folder / MANIFEST)
    except CheckpointError as error:
        return str(error)
    present = {path.relative_to(folder).as_posix() for path in _files(folder)}
    if missing := files.keys() - present:
        return f"{min(missing)} is missing"
    if extra := present - files.keys():
        return f"{min(extra)} is not in {MANIFEST}"
    for name, digest in files.items():
        if _sha256(folder / name) != digest:
            return f"{name} does not match its checksum"
    return None


def drop_checkpoints(root: Path) -> None:
    """Remove all of them and their folder."""
    if not root.is_dir():
        return
    with disk_errors(root):
        for _, folder in list_checkpoints(root):
            _put_aside(folder)
        _remove_leftovers(root)
        root.rmdir()


def checkpoint_name(step: int) -> str:
    """Name of the folder of a step.

    >>> checkpoint_name(10)
    'step-000010'
    """
    return f"step-{step:06d}"


def _seal(folder: Path, step: int) -> None:
    """Put files and manifest on the disk; the manifest last, so that it vouches for what is there."""
    files = sorted(_files(folder))
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    for path in files:
        sync_file(path)
    for path in {path.parent for path in files}:
        sync_folder(path)
    write_text(
        folder / MANIFEST,
        json.dumps({"step": step, "sha256": digests}, indent=1) + "\n",
    )


def _put_aside(folder: Path) -> None:
    """Take away a folder's name at once; a kill while its files are removed must not leave half a checkpoint."""
    if folder.exists():
        os.replace(folder, folder.with_name(f"{_LEFTOVER}old-{folder.name}"))


def _remove_leftovers(root: Path) -> None:
    for path in root.glob(f"{_LEFTOVER}*"):
        shutil.rmtree(path)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _read_manifest(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing")
    try:
        files: Any = json.loads(path.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path.name} is torn") from error
    if not isinstance(files, dict):
        raise CheckpointError(f"{path.name} is torn")
    return cast("dict[str, str]", files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
