"""Which matrices of a shape an adapter's targets name: the rule of `adapters.inject.select_sites`, on counts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace

from lowregret.errors import SpecError
from lowregret.specs.shape import MatrixShape, ModelShape

GROUPS: dict[str, tuple[str, ...]] = {
    "all": ("attention", "mlp", "expert"),
    "attention": ("attention",),
    "mlp": ("mlp", "expert"),
}
"""Kinds that a group name selects. Experts go with the MLP: an expert without an adapter would be no `mlp`."""


def select(
    shape: ModelShape, targets: Iterable[str], *, unembed: bool, field: str = "targets"
) -> tuple[MatrixShape, ...]:
    """The matrices that the targets match, each with the layers in which they do.

    Args:
        shape: of the base.
        targets: `all`, `attention`, `mlp`, or the end of a module name at a dot (`q_proj`, `layers.0.mlp.up_proj`).
        unembed: add the unembedding.
        field: name of the field in errors.

    Raises:
        SpecError: a target matches nothing.
    """
    places: dict[int, set[int]] = {}
    for target in targets:
        found = ((index, _layers(matrix, target)) for index, matrix in enumerate(shape.matrices))
        matched = {index: layers for index, layers in found if layers is not None}
        if not matched:
            raise SpecError(_no_match(shape, target, field))
        for index, layers in matched.items():
            places[index] = places.get(index, set[int]()) | layers
    if unembed:
        places |= {index: set[int]() for index, m in enumerate(shape.matrices) if m.kind == "unembed"}
    chosen = ((shape.matrices[index], places[index]) for index in sorted(places))
    return tuple(replace(matrix, layers=tuple(sorted(layers))) for matrix, layers in chosen)


def _layers(matrix: MatrixShape, target: str) -> set[int] | None:
    """Layers of the matrix that the target matches; None where it matches none."""
    if target in GROUPS:
        return set(matrix.layers) if matrix.kind in GROUPS[target] else None
    if not matrix.layers:
        return set() if _ends_with(matrix.path, target) else None
    return {layer for layer in matrix.layers if _ends_with(matrix.path.format(layer=layer), target)} or None


def _ends_with(path: str, target: str) -> bool:
    return path == target or path.endswith("." + target)


def _no_match(shape: ModelShape, target: str, field: str) -> str:
    known = sorted({matrix.name for matrix in shape.matrices} | set(GROUPS))
    near = difflib.get_close_matches(target, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{field}: {target!r} matches no linear layer of this model{hint} known are {', '.join(known)}"
