"""Memory of this process: its peak, and what the C library keeps of it for no use."""

from __future__ import annotations

import ctypes
import resource
import sys
from functools import cache
from pathlib import Path

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory of this process so far: resident on the CPU, allocated on an accelerator."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


LEAST_RELEASED = 256 << 20
"""Freed bytes that the C library may keep in any case (`docs/log.md`)."""
MOST_GROWTH = 1.25
"""Freed pages that are kept between micro-batches, over those that one micro-batch touches from a clean heap."""
FILLING, REMEASURED = 2, 64
"""Micro-batches at the start after which all are released, and after how many that is measured again."""


def release_freed_memory(device: torch.device) -> None:
    """Give freed pages back to the system where the C library (glibc) holds more than `LEAST_RELEASED` of them.

    Between phases of a run, whose blocks seldom serve each other. Takes about 0.05 s for a gigabyte.
    """
    library = _glibc_of(device)
    if library is not None and library.mallinfo2().fordblks > LEAST_RELEASED:
        library.malloc_trim(0)
        _FREED_PAGES.released(_resident_bytes())


def keep_freed_memory(device: torch.device) -> None:
    """After a micro-batch: leave freed pages to the next one, as far as they are what it will touch.

    Pages that are given back are faulted in again, which took 10 to 17 % of a LoRA step on SmolLM2-135M. Kept without
    a limit they grow, because micro-batches differ in length: with activation checkpointing from 1.9 to 2.7 GiB over
    four steps (`docs/log.md`). So all are released when they outgrow `FreedPages`.
    """
    library = _glibc_of(device)
    if library is None or library.mallinfo2().fordblks <= LEAST_RELEASED:
        return  # torch's other allocators reuse what they hold
    if not _FREED_PAGES.keep(_resident_bytes()):
        library.malloc_trim(0)
        _FREED_PAGES.released(_resident_bytes())


class FreedPages:
    """Whether freed pages stay: those that a micro-batch touched from a clean heap do, and a quarter more.

    >>> pages = FreedPages()
    >>> pages.keep(900)  # nothing is known of a clean heap
    False
    >>> pages.released(500)
    >>> pages.keep(900)  # a micro-batch touches 400, and may again
    False
    >>> pages.released(500)
    >>> [pages.keep(resident) for resident in (900, 1000, 1001)]
    [True, True, False]
    """

    def __init__(self) -> None:
        self._clean: int | None = None
        self._touched = 0
        self._fresh = False
        self._calls = 0

    def keep(self, resident: int) -> bool:
        """Whether the next micro-batch may start with these resident bytes; where not, release and say `released`."""
        self._calls += 1
        # At first what is held throughout is still being filled.
        if self._clean is None or self._calls <= FILLING or self._calls % REMEASURED == 0:
            self._touched = 0
            return False
        self._clean = min(self._clean, resident)
        grown = resident - self._clean
        if self._fresh:
            self._touched = max(self._touched, grown)
        self._fresh = False
        return grown <= MOST_GROWTH * self._touched

    def released(self, resident: int) -> None:
        """What is resident once freed pages are gone."""
        self._clean, self._fresh = resident, True


_FREED_PAGES = FreedPages()
"""Of this process, as the C library's heap is."""


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _glibc_of(device: torch.device) -> ctypes.CDLL | None:
    return _glibc() if device.type == "cpu" else None


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
