"""Brings an update into a model's weights, summed in fp32 and rounded once: W + (alpha / r) B A, or trained masters.

In bf16 the default rounding is stochastic: rounding to nearest drops every element of the update that is under half a
unit in the last place of the weight, most of a small update (science.md, the table of merges).
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """What of the update is in the written weights.

    >>> MergeReport(share_of_update=1.0, share_of_weights_moved=0.5).share_of_update
    1.0
    """

    share_of_update: float
    """<dW written, dW> / |dW|^2 over all trained matrices: 1 where the whole update arrived."""
    share_of_weights_moved: float
    """Share of trained weights that differ from the base in the target format."""


def cure(dtype: torch.dtype, rounding: Rounding) -> str:
    """What to ask for instead, where an update did not survive its rounding."""
    stochastic = "--rounding stochastic or " if dtype == torch.bfloat16 and rounding == "nearest" else ""
    return f"use {stochastic}--dtype fp32"


def rounded(value: Tensor, dtype: torch.dtype, rounding: Rounding, generator: torch.Generator) -> Tensor:
    """fp32 values in the target format."""
    return rounded_to_bf16(value, rounding, generator) if dtype == torch.bfloat16 else value.to(dtype)


class _Tally:
    """Sums up, matrix by matrix, what was wanted and what arrived."""

    def __init__(self) -> None:
        self._dot = self._norm = 0.0
        self._moved = self._total = 0

    def add(self, weight: Tensor, delta: Tensor, written: Tensor) -> None:
        """One matrix: the base's fp32 weight, the update wanted, and the new weight in the target format."""
        base = weight.to(written.dtype)
        arrived = written.float() - base.float()
        self._dot += float((arrived * delta).double().sum())
        self._norm += float(delta.double().square().sum())
        self._moved += int((written != base).sum())
        self._total += delta.numel()

    def report(self, dtype: torch.dtype, rounding: Rounding) -> MergeReport:
        """The shares.

        Raises:
            ExportError: there is an update, and no weight has changed.
        """
        if self._norm > 0 and self._moved == 0:
            raise ExportError(f"the merge changes no weight: the update is below the rounding; {cure(dtype, rounding)}")
        return MergeReport(
            share_of_update=self._dot / self._norm if self._norm else 1.0,
            share_of_weights_moved=self._moved / max(1, self._total),
        )


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
    tally = _Tally()
    merged: dict[str, Tensor] = {}
    for site, a_RD in stored.a_of.items():
        weight = cast(Tensor, model.get_submodule(site).weight)
        delta = (stored.alpha / stored.rank) * (stored.b_of[site].float() @ a_RD.float())
        merged[site] = rounded(weight + delta, dtype, rounding, generator)
        tally.add(weight, delta, merged[site])
    report = tally.report(dtype, rounding)
    cast_parameters(model, dtype)
    _untie_if_adapted(model, stored)
    for site, weight in merged.items():
        cast(Any, model.get_submodule(site)).weight = nn.Parameter(weight, requires_grad=False)
    return report


@torch.no_grad()
def replace_weights(
    model: nn.Module, masters: Mapping[str, Tensor], *, dtype: torch.dtype, rounding: Rounding, seed: int = 0
) -> MergeReport:
    """Put trained fp32 masters in the place of an fp32 model's weights, which then has `dtype`.

    Args:
        model: fp32, the caller's own.
        masters: by parameter name, flat or in shape; weights not named are rounded to nearest.

    Raises:
        ExportError: no weight would change at all.
    """
    generator = torch.Generator().manual_seed(seed)
    tally = _Tally()
    parameters = dict(model.named_parameters())
    written: dict[str, Tensor] = {}
    for name, master in masters.items():
        weight = parameters[name].detach()
        written[name] = rounded(master.view(weight.shape), dtype, rounding, generator)
        tally.add(weight, master.view(weight.shape) - weight, written[name])
    report = tally.report(dtype, rounding)
    cast_parameters(model, dtype)
    for name, weight in written.items():
        parameters[name].data = weight.clone()
    return report


def _untie_if_adapted(model: nn.Module, stored: StoredAdapter) -> None:
    """A tied head that was adapted becomes a matrix of its own; without this the embedding would change with it."""
    causal = cast(Any, model)
    head, embedding = causal.get_output_embeddings(), causal.get_input_embeddings()
    adapted = {id(model.get_submodule(site)) for site in stored.a_of}
    if id(head) in adapted and head.weight is embedding.weight:
        causal.config.tie_word_embeddings = False
