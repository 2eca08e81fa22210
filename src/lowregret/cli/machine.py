"""What this machine offers a run: device, free memory, threads, and whether bf16 is fast. No torch, so that `plan` has
none; a run lets torch confirm it before it starts."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from lowregret.errors import SpecError
from lowregret.specs import DeviceFacts

BF16_FLAGS = {"amx_bf16", "avx512_bf16"}
"""CPU features that multiply bf16 in hardware."""
FIRST_FAST_CUDA = (8, 0)
"""Compute capability from which on tensor cores take bf16 (Ampere)."""
ASSUMED_CUDA_MEMORY = 80 << 30
"""Of a device that a plan is made for and that is not here: the data-centre cards of the day (A100, H100)."""
_FALLBACK_MEMORY = 8 << 30
_NO_LIMIT = 1 << 60


def device_facts(device: str) -> DeviceFacts:
    """The facts of a device; `auto` is the first accelerator that torch can use, else the CPU.

    Raises:
        SpecError: the device is not here.
    """
    kind = device.partition(":")[0]
    if kind in ("auto", "cuda"):
        found = _cuda(device)
        if found is not None:
            return found
        if kind == "cuda":
            raise SpecError(f"--device {device}: no such NVIDIA device, or a torch without CUDA; use --device cpu")
    if platform.system() == "Darwin" and platform.machine() == "arm64" and kind in ("auto", "mps"):
        return DeviceFacts(kind="mps", memory_bytes=_free_memory(), bf16_fast=False, threads=num_threads())
    if kind == "mps":
        raise SpecError("--device mps: needs an Apple processor; use --device cpu")
    if kind not in ("auto", "cpu"):
        raise SpecError(f"--device {device}: is not known; give cpu, cuda, cuda:1 or mps")
    return DeviceFacts(kind="cpu", memory_bytes=_free_memory(), bf16_fast=_cpu_has_bf16(), threads=num_threads())


def planned_facts(device: str, notify: Callable[[str], None]) -> DeviceFacts:
    """The facts of a device that a plan is made for; one that is not here is assumed, and said to be.

    Raises:
        SpecError: the device is not known.
    """
    try:
        return device_facts(device)
    except SpecError:
        kind = device.partition(":")[0]
        if kind == "cuda":
            memory, bf16_fast = ASSUMED_CUDA_MEMORY, True
        elif kind == "mps":
            memory, bf16_fast = _free_memory(), False
        else:
            raise
    notify(f"no {device} here: planned for one with {memory >> 30} GiB; --memory and --dtype say otherwise")
    return DeviceFacts(kind=kind, memory_bytes=memory, bf16_fast=bf16_fast, threads=num_threads())


def confirm_device(device: str, facts: DeviceFacts) -> DeviceFacts:
    """The facts as torch sees them. Loads torch.

    Raises:
        SpecError: torch can't use the device.
    """
    import torch

    if facts.kind == "cuda":
        if not torch.cuda.is_available():
            if device == "auto":
                return device_facts("cpu")
            raise SpecError(f"--device {device}: this torch can't use it; install a CUDA build or use --device cpu")
        name = device if device.startswith("cuda") else "cuda"
        free, _ = torch.cuda.mem_get_info(torch.device(name))
        return replace(facts, memory_bytes=free)
    if facts.kind == "mps" and not torch.backends.mps.is_available():
        raise SpecError("--device mps: this torch can't use it; use --device cpu")
    return facts


def num_threads() -> int:
    """`OMP_NUM_THREADS`, else the processors that this process may use: torch's own default."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    # macOS has no affinity; there every processor counts.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cuda(device: str) -> DeviceFacts | None:
    """The facts of an NVIDIA device by its driver's tool; None where there is none that torch could use."""
    if metadata.version("torch").endswith("+cpu"):
        return None  # other builds without CUDA are found out by `confirm_device`
    index = device.partition(":")[2] or "0"
    query = ["nvidia-smi", f"--id={index}", "--query-gpu=memory.free,compute_cap", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    found = re.fullmatch(r"(\d+), (\d+)\.(\d+)", done.stdout.strip())
    if found is None:
        return None  # a card that shares its memory with the processor reports none
    megabytes, major, minor = (int(part) for part in found.groups())
    return DeviceFacts(
        kind="cuda",
        memory_bytes=megabytes << 20,
        bf16_fast=(major, minor) >= FIRST_FAST_CUDA,
        threads=num_threads(),
    )


def _cpu_has_bf16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    return not BF16_FLAGS.isdisjoint(flags.split())


def _free_memory() -> int:
    """Memory that this process may still take: the machine's, or less where a container allows less."""
    return min(_machine_memory(), _container_memory())


def _machine_memory() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    try:
        # Without a count of what is free, half of what there is.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError):
        return _FALLBACK_MEMORY


def _container_memory(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What the control group leaves; page cache counts as free because the kernel gives it back."""
    limit, current, stat = (folder / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not (limit.is_file() and current.is_file() and stat.is_file()):
        return _NO_LIMIT
    text = limit.read_text().strip()
    if text == "max":
        return _NO_LIMIT
    cache = next(int(line.split()[1]) for line in stat.read_text().splitlines() if line.startswith("inactive_file "))
    return max(0, int(text) - int(current.read_text()) + cache)
