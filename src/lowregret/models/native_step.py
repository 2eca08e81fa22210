"""A decoding step of a Llama-shaped body in one call: what `llama_layer` does matrix by matrix, without Python between.

A step of sixteen rows on a small model spent as long between its pieces as in them. The pieces are the same compiled
ones, in the same order (`kernels/decoding.cpp`), so that the numbers are those of the step layer by layer; a test holds
them equal.
Suffixes: R rows, one token each; D channels, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lowregret.kernels import native
from lowregret.models.kv_cache import DecodingStep
from lowregret.models.llama_layer import LlamaLayer, head_of
from lowregret.models.packed import PackedSites


class NativeStep:
    """All layers of a body, while it decodes with packed matrices."""

    def __init__(self, layers: Sequence[LlamaLayer], packed: PackedSites) -> None:
        self._layers = layers
        self._packed = packed
        formats = {weight.dtype for layer in layers for weight in _weights(layer)}
        alike = len(formats) == len({_kind(layer) for layer in layers}) == 1
        self._fits = alike and layers[0].is_plain and native.serves(layers[0].sites[0].weight)
        self._table: Tensor | None = None
        self._table_of: object = None

    def hidden(
        self, h_RD: Float[Tensor, "R D"], cos_RC: Tensor, sin_RC: Tensor, attending: object
    ) -> Float[Tensor, "R D"] | None:
        """The residual stream behind the last layer; None where this is no such step."""
        if not self._fits or not isinstance(attending, DecodingStep) or not self._packed.takes(h_RD):
            return None
        first = self._layers[0].module
        attention, weight = first.self_attn, first.mlp.gate_proj.weight
        kv_heads = attention.k_proj.weight.shape[0] // attention.head_dim
        if self._table_of is not attending.cache:
            like = h_RD.new_empty(kv_heads, 0, attention.head_dim)
            caches = [attending.cache.of(head_of(layer.module.self_attn).layer, like, like) for layer in self._layers]
            rows = [self._row(layer, *cached) for layer, cached in zip(self._layers, caches, strict=True)]
            self._table, self._table_of = torch.tensor(rows, dtype=torch.int64), attending.cache
        assert self._table is not None
        out_RD = h_RD.clone(memory_format=torch.contiguous_format)
        native.step(
            *(out_RD, cos_RC.contiguous(), sin_RC.contiguous(), self._table, self._packed.blocks(h_RD.shape[0])),
            *(attending.rows, attending.positions),
            heads=attention.q_proj.weight.shape[0] // attention.head_dim,
            kv_heads=kv_heads,
            inner=weight.shape[0],
            length=attending.cache.length,
            eps=(first.input_layernorm.variance_epsilon, first.post_attention_layernorm.variance_epsilon),
            scale=attention.scaling,
        )
        return out_RD

    def _row(self, layer: LlamaLayer, keys: Tensor, values: Tensor) -> tuple[int, ...]:
        module = layer.module
        norms = (module.input_layernorm.weight, module.post_attention_layernorm.weight)
        addresses = [self._packed.addresses(site) for site in layer.sites]
        assert all(weight.is_contiguous() for weight in norms)
        return (
            *(weight.data_ptr() for weight in norms),
            *(matrix for matrix, _ in addresses),
            *(adapters for _, adapters in addresses),
            *(keys.data_ptr(), values.data_ptr(), int(layer.turns), head_of(module.self_attn).window or 0),
        )


def _weights(layer: LlamaLayer) -> tuple[Tensor, ...]:
    """Whose addresses one call reads, all in one format."""
    norms = (layer.module.input_layernorm, layer.module.post_attention_layernorm)
    return (*(norm.weight for norm in norms), *(site.weight for site in layer.sites))


def _kind(layer: LlamaLayer) -> tuple[object, ...]:
    """What one call for all layers takes from the first of them."""
    module = layer.module
    return (
        layer.is_plain,
        *(tuple(site.weight.shape) for site in layer.sites),
        *(module.input_layernorm.variance_epsilon, module.post_attention_layernorm.variance_epsilon),
        *(module.self_attn.scaling, module.self_attn.head_dim),
    )
