"""Which cells train together: one base, one data set, one batch shape; no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from lowregret.specs import AdapterSpec, PlannedBank, RunSpec
from lowregret.specs.codec import to_toml

MOST_SLOTS = 32
"""Slots of a bank where nothing else is said: on small bases more gain nothing, and a kill would cost more."""


def pack_cells(
    cells: Sequence[tuple[str, RunSpec]], *, slots_per_bank: int, workers: int = 1
) -> tuple[PlannedBank, ...]:
    """Banks of the cells, in order; the same for the same cells.

    LoRA cells that differ in nothing but their slot share a bank, in parts of about equal size, at least one for each
    worker where there are enough. A full fine-tuning has a base of its own and trains alone.

    Args:
        cells: identity and run of each, without repetition.
        slots_per_bank: most LoRA cells of a bank.
        workers: processes that train side by side.
    """
    groups: dict[str, list[str]] = {}
    banks: list[PlannedBank] = []
    for cell, spec in cells:
        if isinstance(spec.slots[0].weights, AdapterSpec):
            groups.setdefault(to_toml(replace(spec, slots=())), []).append(cell)
        else:
            banks.append(_bank([cell]))
    rank = {cell: spec.slots[0].weights.rank for cell, spec in cells if isinstance(spec.slots[0].weights, AdapterSpec)}
    for group in groups.values():
        # Slots of one rank side by side are one batch of products (`adapters/stacked.py`).
        group.sort(key=rank.__getitem__)
        parts = max(-(-len(group) // slots_per_bank), min(workers, len(group)))
        banks += [_bank(group[k * len(group) // parts : (k + 1) * len(group) // parts]) for k in range(parts)]
    # The long ones first, so that no worker is left alone with one at the end.
    return tuple(sorted(banks, key=lambda bank: -len(bank.cells)))


def _bank(cells: Sequence[str]) -> PlannedBank:
    name = hashlib.sha256("\n".join(cells).encode()).hexdigest()[:16]
    return PlannedBank(bank=name, cells=tuple(cells))
