"""Where the package keeps what it can make again: dequantised models, tokenised data, pretrained micro bases, and the
digests of large files."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

SETTLED_SECONDS = 2.0
"""A file changed less long ago may change again within one tick of its file system's clock: its digest is not kept."""


def cache_folder() -> Path:
    """`LOWREGRET_CACHE`, else `XDG_CACHE_HOME/lowregret`, else `~/.cache/lowregret`."""
    if "LOWREGRET_CACHE" in os.environ:
        return Path(os.environ["LOWREGRET_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lowregret"


def file_digest(file: Path) -> str:
    """sha256 of a file's bytes: read once, then kept until the file's path, size or times of change are others.

    Raises:
        OSError: the file can't be read.
    """
    path, state = str(file.resolve()), file.stat()
    # A program may set the first time back, as archives do, but not the second.
    facts = {"path": path, "size": state.st_size, "mtime_ns": state.st_mtime_ns, "ctime_ns": state.st_ctime_ns}
    place = cache_folder() / "digests" / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.json"
    kept = _kept(place)
    if facts.items() <= kept.items() and "sha256" in kept:
        return kept["sha256"]
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if time.time() - state.st_mtime > SETTLED_SECONDS:
        # Where the cache can't be written, the file is read again next time; who needs to write there says so.
        with suppress(OSError):
            _write_whole(place, json.dumps({**facts, "sha256": digest}))
    return digest


def _kept(place: Path) -> dict[str, Any]:
    try:
        value = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or none that can be read: as good as none
        return {}
    return value if isinstance(value, dict) else {}


def _write_whole(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=".digest-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, place)
