"""Where a run computes and in which arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class HardwareSpec:
    """Device, number format and memory trade-offs of a run.

    >>> HardwareSpec().device
    'auto'
    """

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`, or `auto`: the first accelerator, else the CPU."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the base weights and activations; masters and accumulators are fp32 in either.
    `auto` is bf16 where the device multiplies it fast, else fp32."""
    threads: int | None = None
    """CPU threads. None: torch's default. Fixed in the run's plan because sums depend on it."""
    tokens_per_microbatch: int | None = None
    """Tokens that one forward and backward holds. None: the planner's choice from memory."""
    activation_checkpointing: bool = False
    """Keep only each layer's input and recompute the rest in the backward: less memory, a third more time."""
    memory_bytes: int | None = None
    """Memory that the run may use. None: what the device has free."""


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What the planner needs to know of the machine: measured by whoever holds the device, or stated by the user.

    >>> DeviceFacts(kind="cpu", memory_bytes=16 << 30, bf16_fast=False, threads=2).kind
    'cpu'
    """

    kind: str
    """`cpu`, `cuda` or `mps`."""
    memory_bytes: int
    """Free memory: of the accelerator, or the machine's for `cpu`."""
    bf16_fast: bool
    """Whether bf16 matrix products run in hardware (AMX, AVX512-BF16, tensor cores): `auto` chooses by this."""
    threads: int
    """CPU threads that torch would use."""
    macs_per_second: float | None = None
    """Measured or stated multiply-adds a second in the run's dtype; None: no time is predicted."""
