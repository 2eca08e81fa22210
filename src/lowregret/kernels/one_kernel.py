"""Torch operations of one piece as one kernel of a GPU, by torch.compile.

A piece is written once, in torch. On the CPU it stands behind the compiled pieces of `native` and runs as it is
written; on CUDA each of its operations would be a launch and a pass over memory. Compiled for any shape, so that a new
length is not compiled again; the compiler keeps its results on disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

FORMS = 64
"""Forms of one piece that are compiled: formats, strides, which arguments are one tensor. Past torch's own limit of 8
further ones would run piece by piece."""

P = ParamSpec("P")
R = TypeVar("R")


def serves(tensor: Tensor) -> bool:
    """Whether pieces on this tensor's device are compiled: CUDA with Triton, unless `LOWREGRET_KERNELS=torch`."""
    return tensor.device.type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None and os.environ.get("LOWREGRET_KERNELS") != "torch"


def one_kernel(piece: Callable[P, R]) -> Callable[P, R]:
    """The piece, compiled where its first argument lies on a GPU; nothing is differentiated through it."""

    @cache
    def compiled() -> Callable[P, R]:
        make = cast(Any, torch.compile)  # its overloads leave out `recompile_limit`
        return cast(Callable[P, R], make(piece, dynamic=True, recompile_limit=FORMS))

    @wraps(piece)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        assert isinstance(first, Tensor)
        return compiled()(*args, **kwargs) if serves(first) else piece(*args, **kwargs)

    return call
