"""Tensor names and shapes from safetensors headers, without reading a weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lowregret.errors import SpecError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit; a larger length means that the file is no safetensors file."""


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """One stored tensor.

    >>> TensorHeader(dtype="BF16", shape=(4, 2)).num_values
    8
    """

    dtype: str
    """`F32`, `BF16`, `U8`, ... as the format spells it."""
    shape: tuple[int, ...]

    @property
    def num_values(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product


def stored_format(headers: Mapping[str, TensorHeader]) -> str | None:
    """The number format of most values; None where there are none.

    >>> stored_format({"w": TensorHeader(dtype="BF16", shape=(8,)), "norm": TensorHeader(dtype="F32", shape=(2,))})
    'BF16'
    """
    values: dict[str, int] = {}
    for header in headers.values():
        values[header.dtype] = values.get(header.dtype, 0) + header.num_values
    return max(values, key=lambda name: values[name], default=None)


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of the folder's `*.safetensors`, by name; empty where it has none.

    Raises:
        SpecError: a file is not safetensors.
    """
    tensors: dict[str, TensorHeader] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= _read_header(file)
    return tensors


def _read_header(file: Path) -> dict[str, TensorHeader]:
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise SpecError(f"{file}: is no safetensors file (its header would have {length} bytes); fetch it again")
        text = handle.read(length)
    try:
        entries = cast(Mapping[str, Mapping[str, object]], json.loads(text))
        return {
            name: TensorHeader(dtype=str(entry["dtype"]), shape=tuple(cast(list[int], entry["shape"])))
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise SpecError(f"{file}: its safetensors header can't be read; fetch the file again") from error
