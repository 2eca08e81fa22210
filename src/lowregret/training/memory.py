"""Memory of this process: its peak, and what the C library keeps of it for no use."""

from __future__ import annotations

import ctypes
import resource
import sys
from functools import cache

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory of this process so far: resident on the CPU, allocated on an accelerator."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


MOST_KEPT = 256 << 20
"""Freed bytes that the C library may keep: pages that are given back are faulted in again, which took a quarter of a
step of sixteen adapters on `micro` (`docs/log.md`)."""


def release_freed_memory(device: torch.device) -> None:
    """Give freed pages back to the system where the C library (glibc) holds more than `MOST_KEPT` of them.

    Micro-batches differ in length, so freed blocks of one seldom serve the next: with activation checkpointing on
    SmolLM2-135M the heap grew from 1.9 to 2.7 GiB over four steps, and stayed at 1.9 to 2.1 with this after every
    micro-batch, at 0.05 s each (`docs/log.md`).
    """
    if device.type != "cpu":
        return  # torch's own allocators reuse what they hold
    library = _glibc()
    if library is not None and library.mallinfo2().fordblks > MOST_KEPT:
        library.malloc_trim(0)


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`; `fordblks` are the bytes of freed blocks."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks"),
            "keepcost",
        )
    )


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    try:
        library.mallinfo2.restype = _MallInfo
        library.malloc_trim.restype = ctypes.c_int
    except AttributeError:
        return None  # another C library, or a glibc before 2.33
    return library
