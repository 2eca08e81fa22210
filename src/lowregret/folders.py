"""Where the package keeps what it can make again: dequantised models, tokenised data, pretrained micro bases."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`LOWREGRET_CACHE`, else `XDG_CACHE_HOME/lowregret`, else `~/.cache/lowregret`."""
    if "LOWREGRET_CACHE" in os.environ:
        return Path(os.environ["LOWREGRET_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lowregret"
