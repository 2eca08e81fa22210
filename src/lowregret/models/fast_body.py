"""The fast path: the body of a Llama-shaped model, layer by layer through `llama_layer`.

Used wherever it applies; other models run through transformers' own modules (`CausalLM.hidden`), and give the same
numbers (tests/models/test_fast_body.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lowregret.models.attention import Attending
from lowregret.models.llama_layer import Around, LlamaLayer, NormFunction
from lowregret.models.native_step import NativeStep
from lowregret.models.packed import PackedSites, Site

FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "smollm3"}
"""Families, as config.json names them, whose layer is that of `llama_layer`: RMS norm before attention and before a
gated SiLU MLP, rotary positions, with or without biases, norms of heads, windows."""


class FastBody:
    """Embeddings to last hidden states."""

    def __init__(self, body: nn.Module, gradients: Mapping[Tensor, Tensor]) -> None:
        """
        Args:
            body: of a family in `FAMILIES`.
            gradients: accumulators of the body's own parameters that train.
        """
        self._body = cast(Any, body)
        self._layers = [LlamaLayer(layer) for layer in self._body.layers]
        self._gradients = gradients
        self.recompute = False
        """Activation checkpointing."""
        self.packed: PackedSites | None = None
        """Matrices for products of few rows, while the model decodes."""
        self._step: NativeStep | None = None

    def decode_with(self, packed: PackedSites | None) -> None:
        """From here on multiply few rows by these; None: by the weights themselves again."""
        self.packed = packed
        self._step = None if packed is None else NativeStep(self._layers, packed)

    @staticmethod
    def fits(body: nn.Module) -> bool:
        """Whether this is a body of transformers' own whose layers are known."""
        shaped = cast(Any, body)
        config = shaped.config
        own = type(body).__module__.startswith("transformers.models.")
        if not own or config.model_type not in FAMILIES or config.hidden_act != "silu":
            return False
        # All channels of a head are turned (no partial rotary positions).
        return 2 * shaped.rotary_emb.inv_freq.numel() == shaped.layers[0].self_attn.head_dim

    @property
    def looks_at_positions(self) -> bool:
        """Whether rotary frequencies depend on how long a document is, which a GPU has to be asked for."""
        rope_type = str(getattr(self._body.rotary_emb, "rope_type", "default"))
        return "dynamic" in rope_type or rope_type == "longrope"

    @property
    def sites(self) -> list[Site]:
        """The matrices of all layers."""
        return [site for layer in self._layers for site in layer.sites]

    def hidden(
        self, embedded_TD: Float[Tensor, "T D"], positions_T: Int[Tensor, " T"], attending: Attending
    ) -> Float[Tensor, "T D"]:
        """Last hidden states; differentiable where the embeddings are."""
        cos, sin = self._body.rotary_emb(embedded_TD[None], positions_T[None])
        around = Around(
            cos=cos[0],
            sin=sin[0],
            attending=attending,
            gradients=self._gradients,
            recompute=self.recompute,
            packed=self.packed,
        )
        h_TD = self._stepped(embedded_TD, around)
        if h_TD is None:
            h_TD = embedded_TD
            for layer in self._layers:
                h_TD = layer(h_TD, around)
        return cast(Tensor, NormFunction.apply(h_TD, self._body.norm, around))

    def _stepped(self, embedded_TD: Tensor, around: Around) -> Tensor | None:
        """Through all layers in one call, where this is a decoding step that can be."""
        if self._step is None or torch.is_grad_enabled():
            return None
        return self._step.hidden(embedded_TD, around.cos, around.sin, around.attending)
