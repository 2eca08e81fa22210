"""Merges an adapter into its base: W + (alpha / r) B A, summed in fp32 and rounded once.

In bf16 the default rounding is stochastic: rounding to nearest drops every element of the update that is under half a
unit in the last place of the weight, most of a small update (science.md, the table of merges).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowregret.adapters.full import rounded_to_bf16
from lowregret.adapters.peft_format import StoredAdapter
from lowregret.errors import ExportError
from lowregret.models.load import cast_parameters
from lowregret.specs import Rounding


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What of the update is in the merged weights.

    >>> MergeReport(share_of_update=1.0, share_of_weights_moved=0.5).share_of_update
    1.0
    """

    share_of_update: float
    """<dW merged, dW> / |dW|^2 over all adapted matrices: 1 where the whole update arrived."""
    share_of_weights_moved: float
    """Share of adapted weights that differ from the base in the target format."""


def rounded(value: Tensor, dtype: torch.dtype, rounding: Rounding, generator: torch.Generator) -> Tensor:
    """fp32 values in the target format."""
    return rounded_to_bf16(value, rounding, generator) if dtype == torch.bfloat16 else value.to(dtype)


@torch.no_grad()
def merge(
    model: nn.Module, stored: StoredAdapter, *, dtype: torch.dtype, rounding: Rounding, seed: int = 0
) -> MergeReport:
    """Merge in place into an fp32 model of the caller's own, which then has `dtype`.

    Weights that the adapter does not touch are rounded to nearest: bf16 weights stay what they were.

    Args:
        model: fp32; its embedding is untied from the head where the adapter changes a tied head.
        stored: the adapter, sites by module name.
        dtype: of the merged model.
        rounding: how fp32 sums become bf16; of no effect in fp32.

    Raises:
        ExportError: the merge would change no weight at all.
    """
    generator = torch.Generator().manual_seed(seed)
    dot = norm = 0.0
    moved = total = 0
    merged: dict[str, Tensor] = {}
    for site, a_RD in stored.a_of.items():
        weight = cast(Tensor, model.get_submodule(site).weight)
        delta = (stored.alpha / stored.rank) * (stored.b_of[site].float() @ a_RD.float())
        merged[site] = rounded(weight + delta, dtype, rounding, generator)
        base = weight.to(dtype)
        arrived = merged[site].float() - (weight if dtype == torch.float32 else base.float())
        dot += float((arrived * delta).double().sum())
        norm += float(delta.double().square().sum())
        moved += int((merged[site] != base).sum())
        total += delta.numel()
    if norm > 0 and moved == 0:
        raise ExportError(
            "the merge changes no weight: the update is below the rounding; use --rounding stochastic or --dtype fp32"
        )
    cast_parameters(model, dtype)
    _untie_if_adapted(model, stored)
    for site, weight in merged.items():
        cast(Any, model.get_submodule(site)).weight = nn.Parameter(weight, requires_grad=False)
    return MergeReport(share_of_update=dot / norm if norm else 1.0, share_of_weights_moved=moved / max(1, total))


def _untie_if_adapted(model: nn.Module, stored: StoredAdapter) -> None:
    """A tied head that was adapted becomes a matrix of its own; without this the embedding would change with it."""
    causal = cast(Any, model)
    head, embedding = causal.get_output_embeddings(), causal.get_input_embeddings()
    adapted = {id(model.get_submodule(site)) for site in stored.a_of}
    if id(head) in adapted and head.weight is embedding.weight:
        causal.config.tie_word_embeddings = False
