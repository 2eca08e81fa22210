"""Compiles the C++ beside it at its first use and keeps the result in the cache; without a compiler there is none.

The library is plain C behind ctypes: no torch headers, so that it takes seconds, and no pickles or code from elsewhere.
It is compiled for the processor that it runs on. Its threads are torch's own: both use the OpenMP runtime that torch
has loaded, so `torch.set_num_threads` holds here too.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from lowregret.folders import cache_folder

_NAMES = ("pieces", "decoding", "attention", "thin", "updates")
SOURCES = tuple(Path(__file__).with_name(f"{name}.cpp") for name in _NAMES)
HEADERS = tuple(Path(__file__).with_name(name) for name in ("formats.h", "blocks.h", "rows.h"))
# Reductions are vectorised where the source says so (omp simd). -ffast-math would drop NaNs.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-shared", "-fPIC")
if platform.machine() == "x86_64":
    FLAGS = (*FLAGS, "-mprefer-vector-width=512")  # gcc's default is half of what AVX-512 has; others ignore it
COMPILE_SECONDS = 120


@cache
def library() -> ctypes.CDLL | None:
    """The compiled pieces; None where they can't be made: no compiler, another system, a cache that can't be written.

    `LOWREGRET_KERNELS=torch` asks for none.
    """
    if os.environ.get("LOWREGRET_KERNELS") == "torch" or sys.platform != "linux":
        return None
    compiler = next((path for name in ("g++", "c++") if (path := shutil.which(name))), None)
    if compiler is None:
        return None
    processor = f"{platform.machine()} {torch.cpu.get_capabilities()}"
    written = [file.read_text(encoding="utf-8") for file in (*SOURCES, *HEADERS)]
    recipe = "\n".join((*written, compiler, *FLAGS, processor))
    file = cache_folder() / "kernels" / f"pieces-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"
    try:
        if not file.exists():
            _compile(compiler, file)
        return _loaded(file) or _loaded(_compile(compiler, file))
    except PermissionError as error:
        warnings.warn(f"{error}; until then torch's own operations serve, which are slower", stacklevel=2)
        return None
    except (OSError, subprocess.SubprocessError):
        return None


def _loaded(file: Path) -> ctypes.CDLL | None:
    """None for a file that is no library, as a crash leaves it empty: it is made again.

    Raises:
        PermissionError: somebody else could have written it.
    """
    for place in (file, file.parent):
        state = place.stat()
        if state.st_uid != os.geteuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{place} belongs to somebody else or others may write to it; remove it")
    try:
        return ctypes.CDLL(str(file))
    except OSError:
        return None


def _compile(compiler: str, file: Path) -> Path:
    """Whole or not at all: another process may be about to do the same."""
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        made = Path(scratch) / file.name
        objects = [Path(scratch) / f"{source.stem}.o" for source in SOURCES]
        # A file each at the same time: together they take half as long on two cores.
        with ThreadPoolExecutor(len(SOURCES)) as compilers:
            pairs = zip(SOURCES, objects, strict=True)
            list(compilers.map(lambda pair: _run(compiler, *FLAGS, "-c", pair[0], "-o", pair[1]), pairs))
        _run(compiler, *FLAGS, *objects, "-o", made)
        made.chmod(0o700)
        os.replace(made, file)
    return file


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
