"""Finds the matrices that a slot's targets name, and puts adapted layers in their place.

Kinds of site known today: `nn.Linear`. A fused expert tensor or a quantised matrix becomes a further kind by another
module with `reserve`, `write`, `clear`, `columns` and `gradients` of `AdaptedLinear` and a branch in `_adapted`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from torch import nn

from lowregret.adapters.layer import AdaptedLinear, RoutingCell
from lowregret.errors import SpecError

Kind = Literal["attention", "mlp", "unembed", "router"]

ATTENTION_PARENTS = re.compile(r"attn|attention")
MLP_PARENTS = re.compile(r"mlp|feed_forward|ffn|block_sparse_moe|experts")


def linear_kinds(model: nn.Module, head_name: str) -> dict[str, Kind]:
    """Every adaptable matrix of the model by full module name, with its kind.

    Linear layers outside attention, MLP and unembedding (a score head, say) are not sites.
    """
    kinds: dict[str, Kind] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | AdaptedLinear):
            continue
        parents = name.rsplit(".", 1)[0]
        if name == head_name:
            kinds[name] = "unembed"
        elif name.endswith((".router", ".gate")) and MLP_PARENTS.search(parents):
            kinds[name] = "router"
        elif ATTENTION_PARENTS.search(parents):
            kinds[name] = "attention"
        elif MLP_PARENTS.search(parents) or re.search(r"\.(fc1|fc2)$", name):
            kinds[name] = "mlp"
    return kinds


def select_sites(kinds: Mapping[str, Kind], targets: Iterable[str], *, unembed: bool) -> tuple[str, ...]:
    """Full module names that the targets match, in model order.

    Args:
        kinds: result of `linear_kinds`.
        targets: `all`, `attention`, `mlp`, or the end of a module name at a dot (`q_proj`, `layers.0.mlp.up_proj`).
        unembed: add the unembedding.

    Raises:
        SpecError: a target matches nothing.
    """
    chosen: set[str] = set()
    for target in targets:
        if target == "all":
            matched = {name for name, kind in kinds.items() if kind in ("attention", "mlp")}
        elif target in ("attention", "mlp"):
            matched = {name for name, kind in kinds.items() if kind == target}
        else:
            matched = {name for name in kinds if name == target or name.endswith("." + target)}
        if not matched:
            known = sorted({name.rsplit(".", 1)[-1] for name in kinds} | {"all", "attention", "mlp"})
            near = difflib.get_close_matches(target, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SpecError(
                f"targets: {target!r} matches no linear layer of this model{hint} Known: {', '.join(known)}"
            )
        chosen |= matched
    if unembed:
        chosen |= {name for name, kind in kinds.items() if kind == "unembed"}
    return tuple(name for name in kinds if name in chosen)


def inject(model: nn.Module, names: Iterable[str], cell: RoutingCell) -> dict[str, AdaptedLinear]:
    """Replace the named linear layers by adapted ones; returns them by name. Layers adapted already are kept."""
    adapted: dict[str, AdaptedLinear] = {}
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        module = getattr(parent, child)
        if not isinstance(module, AdaptedLinear):
            module = AdaptedLinear(module, name, cell)
            setattr(parent, child, module)
        adapted[name] = module
    return adapted
