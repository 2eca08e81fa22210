"""Rules about updates that rounding to bf16 swallows, and the measurement that one of them needs.

The engine itself swallows none (docs/architecture.md, "Fidelity"): what is left are slots that were told to train in
the usual arithmetic, and what becomes of an adapter when something else merges it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lowregret.store import RunDirectory
from lowregret.studies.diagnose.symptom import Symptom
from lowregret.studies.diagnose.view import RunView

FULLY, MOSTLY = 0.9, 0.5
"""Share of an update that survives a merge, above which nothing is said, and under which it is a warning."""
MOST_ROWS = 64
"""Rows of a matrix that are rounded to estimate the share: thousands of elements each, of every matrix."""
HALF_ULP = 2.0**-9
"""Half a unit in the last place of bf16 at the top of a binade, relative to the weight."""
PREFIX, SUFFIX_A, SUFFIX_B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Formats of safetensors that a base is stored in; bf16 is read as integers."""

Matrix = NDArray[np.float32]


def swallowed_in_training(view: RunView) -> Iterator[Symptom]:
    """Slots that were told to train in an arithmetic that rounds a small update away."""
    if view.plan.dtype != "bf16":
        return
    for slot, adapter in view.adapters:
        if adapter.arithmetic != "accumulator":
            yield Symptom(
                rule="update-swallowed",
                where=slot.name,
                severity="serious",
                seen=f"the adapter's part joins a base that was rounded to bf16 before ({adapter.arithmetic})",
                why="what lies under half a unit of the base's output acts nowhere: most of the first updates",
                remedy="leave arithmetic out of the spec (accumulator), or --dtype fp32",
            )
    for slot, full in view.full:
        if full.rounding != "nearest":
            continue
        lr = slot.optim.lr or 0.0
        yield Symptom(
            rule="update-swallowed",
            where=slot.name,
            severity="serious",
            seen=f"the bf16 copy is rounded to nearest: at lr {lr:.2g} no step moves a weight over {lr / HALF_ULP:.1g}",
            why="most of a small update never reaches the forward pass; the baseline is worse than full fine-tuning is",
            remedy="leave rounding out of the spec (stochastic), or --dtype fp32",
        )


def swallowed_by_merge(view: RunView) -> Iterator[Symptom]:
    """Adapters of which little is left when they are merged into bf16 by rounding to nearest."""
    for slot, share in view.surviving:
        if share < FULLY:
            yield Symptom(
                rule="merge-swallows",
                where=slot,
                severity="warning" if share < MOSTLY else "note",
                seen=f"{share:.0%} of its update is left when it is merged into bf16 by rounding to nearest",
                why="most tools merge that way; the merged model is then close to the base",
                remedy=f"lowregret export RUN --slot {slot} --merge (stochastic rounding), or serve it unmerged",
            )


def surviving_shares(run: RunDirectory, base: Path) -> dict[str, float]:
    """Of each adapter that was written: <dW merged, dW> / |dW|^2 in bf16 by rounding to nearest.

    Measured on at most 64 rows of every matrix that the base stores under its module's name; slots without any are
    left out.

    Args:
        base: folder of the base's safetensors.
    """
    stored = _Tensors.of(base)
    shares: dict[str, float] = {}
    for slot in run.spec.slots:
        folder = run.adapter_folder(slot.name)
        if (folder / "adapter_config.json").is_file():
            share = _share(folder, stored)
            if share is not None:
                shares[slot.name] = share
    return shares


def nearest_bf16(values: Matrix) -> Matrix:
    """fp32 numbers rounded to bf16, ties to even.

    >>> nearest_bf16(np.array([1.0, 1.001, 1.006], dtype=np.float32)).tolist()
    [1.0, 1.0, 1.0078125]
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


@dataclass(frozen=True, kw_only=True)
class _Tensors:
    """Where the tensors of a folder lie.

    >>> _Tensors(places={}).places
    {}
    """

    places: Mapping[str, tuple[Path, int, Mapping[str, Any]]]
    """File, start of its data, and header entry of each tensor."""

    @classmethod
    def of(cls, folder: Path) -> _Tensors:
        places: dict[str, tuple[Path, int, Mapping[str, Any]]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb") as handle:
                length = int.from_bytes(handle.read(8), "little")
                header = cast("dict[str, Mapping[str, Any]]", json.loads(handle.read(length)))
            places |= {n: (file, 8 + length, entry) for n, entry in header.items() if entry.get("dtype") in STORED}
        return cls(places=places)

    def rows(self, name: str, most: int | None = None) -> tuple[NDArray[np.intp], Matrix]:
        """Evenly spread rows of a matrix, and which they are."""
        file, start, entry = self.places[name]
        shape = cast("list[int]", entry["shape"])
        raw = np.memmap(
            file, dtype=STORED[entry["dtype"]], mode="r", offset=start + entry["data_offsets"][0], shape=tuple(shape)
        )
        step = 1 if most is None else max(1, shape[0] // most)
        chosen = np.arange(0, shape[0], step)
        values = np.asarray(raw[chosen])
        if entry["dtype"] == "BF16":
            return chosen, (values.astype(np.uint32) << 16).view(np.float32)
        return chosen, values.astype(np.float32)


def _share(folder: Path, base: _Tensors) -> float | None:
    config = json.loads((folder / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / config["r"]
    adapter = _Tensors.of(folder)
    dot = norm = 0.0
    for key in adapter.places:
        weight = key.removeprefix(PREFIX).removesuffix(SUFFIX_A) + ".weight"
        if not key.endswith(SUFFIX_A) or weight not in base.places:
            continue
        chosen, w_FD = base.rows(weight, MOST_ROWS)
        _, a_RD = adapter.rows(key)
        _, b_FR = adapter.rows(key.removesuffix(SUFFIX_A) + SUFFIX_B)
        delta_FD = (scaling * (b_FR[chosen] @ a_RD)).astype(np.float32)
        arrived_FD = nearest_bf16(w_FD + delta_FD) - nearest_bf16(w_FD)
        dot += float((arrived_FD.astype(np.float64) * delta_FD).sum())
        norm += float((delta_FD.astype(np.float64) ** 2).sum())
    return dot / norm if norm else None
