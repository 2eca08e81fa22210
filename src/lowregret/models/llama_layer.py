"""One layer of a Llama-shaped model with its backward written out: the fast path of `fast_body`.

Autograd sees a layer as one operation. What a backward can make again for less than it costs to keep (both norms'
outputs, the MLP's inner product) is made again, so that a token holds about 10 D numbers a layer. Every matrix goes
through the same kernels as on the generic path (`adapters.layer`, `kernels.products`).
The same layer by autograd is transformers' own; tests hold the two equal, gradients included.
Suffixes: T tokens, D channels, H heads, K key-value heads, C channels of a head, F inner channels of the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowregret.adapters.layer import AdaptedLinear, Kept
from lowregret.kernels.products import add_product, matmul
from lowregret.models.attention import Attending, Head
from lowregret.models.fused import rms_norm, rms_norm_backward, rms_scale, rotate, swiglu, swiglu_backward
from lowregret.models.packed import PackedSites, Site


@dataclass(frozen=True, kw_only=True)
class Around:
    """What all layers of one forward share.

    >>> from lowregret.models.attention import Packing
    >>> alone = Packing(lengths=(1,))
    >>> Around(cos=torch.ones(1, 4), sin=torch.zeros(1, 4), attending=alone, gradients={}, recompute=False).recompute
    False
    """

    cos: Float[Tensor, "T C"]
    sin: Float[Tensor, "T C"]
    attending: Attending
    gradients: Mapping[Tensor, Tensor]
    """Accumulators of the base's own parameters that train; empty where only adapters do."""
    recompute: bool
    """Keep a layer's input only, and run the layer again in the backward (activation checkpointing)."""
    packed: PackedSites | None = None
    """Matrices for products of few rows, where nothing is kept for a backward."""


@dataclass(frozen=True, kw_only=True)
class Normed:
    """A head's vectors before their norm (Qwen3), [T, H, C], and the norm's factor, [T H, 1]."""

    before: Tensor
    inverse: Tensor


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What a layer's backward needs besides the layer's input."""

    inverse_in: Tensor
    q: Tensor
    """[H, T, C], a leaf of attention's own graph; so are k and v, [K, T, C]."""
    k: Tensor
    v: Tensor
    attended: Tensor
    """[H, T, C]."""
    middle: Tensor
    """The residual stream between attention and MLP, [T, D]."""
    inverse_middle: Tensor
    gate: Tensor
    up: Tensor
    q_normed: Normed | None
    k_normed: Normed | None
    sites: Mapping[str, Kept | None]
    """By the matrix's name."""


class LlamaLayer:
    """A transformers layer (attention with q, k, v, o; MLP with gate, up, down) with its own forward and backward."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = cast(Any, layer)
        self.turns = bool(getattr(self._layer.self_attn, "use_rope", True))  # SmolLM3 leaves some layers unturned

    @property
    def sites(self) -> list[Site]:
        """The layer's matrices."""
        attention, mlp = self._layer.self_attn, self._layer.mlp
        attending = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        return [*attending, mlp.gate_proj, mlp.up_proj, mlp.down_proj]

    @property
    def module(self) -> Any:
        """transformers' own."""
        return self._layer

    @property
    def is_plain(self) -> bool:
        """Whether it has neither biases nor norms of heads (Llama, Mistral, SmolLM)."""
        attention = self._layer.self_attn
        normed = getattr(attention, "q_norm", None) is not None or getattr(attention, "k_norm", None) is not None
        return not normed and all(site.bias is None for site in self.sites)

    def __call__(self, h_TD: Float[Tensor, "T D"], around: Around) -> Float[Tensor, "T D"]:
        """The residual stream behind the layer; differentiable where grad mode is on."""
        if torch.is_grad_enabled() and h_TD.requires_grad:
            return cast(Tensor, _LayerFunction.apply(h_TD, self, around))
        return self.run(h_TD, around, keep=False)[0]

    def run(self, h_TD: Tensor, around: Around, *, keep: bool) -> tuple[Tensor, Activations | None]:
        """Forward, outside autograd; the activations where `keep` says so."""
        attention, mlp, num_tokens = self._layer.self_attn, self._layer.mlp, h_TD.shape[0]
        sites: dict[str, Kept | None] = {}
        packed = None if keep else around.packed
        buffer, n_TD = _roomy(h_TD, h_TD.shape[1], attention.q_proj, attention.k_proj, attention.v_proj)
        inverse_in = _norm(self._layer.input_layernorm, h_TD, n_TD)
        rows: dict[str, Tensor] = {}
        for name in ("q", "k", "v"):
            rows[name], sites[name] = _forward(getattr(attention, f"{name}_proj"), n_TD, buffer, packed)
        by_head = {name: row.view(num_tokens, -1, attention.head_dim) for name, row in rows.items()}
        normed: dict[str, Normed | None] = {}
        for name in ("q", "k"):
            by_head[name], normed[name] = _head_norm(getattr(attention, f"{name}_norm", None), by_head[name])
            if self.turns:
                turned = torch.empty_like(by_head[name])
                rotate(by_head[name], around.cos, around.sin, turned)
                by_head[name] = turned
        q_HTC, k_KTC, v_KTC = (by_head[name].transpose(0, 1).requires_grad_(keep) for name in ("q", "k", "v"))
        with torch.set_grad_enabled(keep):
            attended_HTC = around.attending.attend(q_HTC, k_KTC, v_KTC, head_of(attention))
        buffer, o_TX = self._attended_rows(attended_HTC, attention.o_proj)
        middle_TD, sites["o"] = _forward(attention.o_proj, o_TX, buffer, packed)
        middle_TD += h_TD
        buffer, n_TD = _roomy(h_TD, h_TD.shape[1], mlp.gate_proj, mlp.up_proj)
        inverse_middle = _norm(self._layer.post_attention_layernorm, middle_TD, n_TD)
        gate_TF, sites["gate"] = _forward(mlp.gate_proj, n_TD, buffer, packed)
        up_TF, sites["up"] = _forward(mlp.up_proj, n_TD, buffer, packed)
        buffer, m_TF = _roomy(h_TD, gate_TF.shape[1], mlp.down_proj)
        swiglu(gate_TF, up_TF, m_TF)
        out_TD, sites["down"] = _forward(mlp.down_proj, m_TF, buffer, packed)
        out_TD += middle_TD
        if not keep:
            return out_TD, None
        return out_TD, Activations(
            inverse_in=inverse_in,
            q=q_HTC,
            k=k_KTC,
            v=v_KTC,
            attended=attended_HTC,
            middle=middle_TD,
            inverse_middle=inverse_middle,
            gate=gate_TF,
            up=up_TF,
            q_normed=normed["q"],
            k_normed=normed["k"],
            sites=sites,
        )

    def run_back(self, h_TD: Tensor, dh_TD: Tensor, kept: Activations, around: Around) -> Tensor:
        """Gradient of the layer's input; adds the gradients of everything that trains in it."""
        attention, mlp, layer = self._layer.self_attn, self._layer.mlp, self._layer
        buffer, dstream_TD = _roomy(h_TD, h_TD.shape[1], attention.o_proj, mlp.down_proj)
        dstream_TD.copy_(dh_TD)
        dn_TD = self._mlp_back(dstream_TD, buffer, kept, around)
        norm = layer.post_attention_layernorm
        _norm_back(norm, dn_TD, kept.middle, kept.inverse_middle, around, dstream_TD, dstream_TD)
        dn_TD = self._attention_back(h_TD, dstream_TD, buffer, kept, around)
        _norm_back(layer.input_layernorm, dn_TD, h_TD, kept.inverse_in, around, dn_TD, dstream_TD)
        return dn_TD

    def _mlp_back(self, dy_TD: Tensor, room: Tensor, kept: Activations, around: Around) -> Tensor:
        mlp = self._layer.mlp
        m_TF = torch.empty_like(kept.gate)
        swiglu(kept.gate, kept.up, m_TF)
        dm_TF = _backward(mlp.down_proj, m_TF, dy_TD, kept.sites["down"], room, around)
        gate_room, dgate_TF = _roomy(dm_TF, dm_TF.shape[1], mlp.gate_proj)
        up_room, dup_TF = _roomy(dm_TF, dm_TF.shape[1], mlp.up_proj)
        swiglu_backward(dm_TF, kept.gate, kept.up, dgate_TF, dup_TF)
        n_TD = torch.empty_like(kept.middle)
        rms_scale(kept.middle, kept.inverse_middle, self._layer.post_attention_layernorm.weight, n_TD)
        dn_TD = _backward(mlp.gate_proj, n_TD, dgate_TF, kept.sites["gate"], gate_room, around)
        return dn_TD.add_(_backward(mlp.up_proj, n_TD, dup_TF, kept.sites["up"], up_room, around))

    def _attention_back(self, h_TD: Tensor, dy_TD: Tensor, room: Tensor, kept: Activations, around: Around) -> Tensor:
        attention, num_tokens = self._layer.self_attn, h_TD.shape[0]
        _, o_TX = self._attended_rows(kept.attended.detach(), attention.o_proj)
        do_TX = _backward(attention.o_proj, o_TX, dy_TD, kept.sites["o"], room, around)
        do_HTC = do_TX.view(num_tokens, -1, attention.head_dim).transpose(0, 1)
        dq_HTC, dk_KTC, dv_KTC = torch.autograd.grad(kept.attended, (kept.q, kept.k, kept.v), do_HTC)
        n_TD = torch.empty_like(h_TD)
        rms_scale(h_TD, kept.inverse_in, self._layer.input_layernorm.weight, n_TD)
        dn_TD: Tensor | None = None
        turned = {"q": (dq_HTC, kept.q_normed), "k": (dk_KTC, kept.k_normed), "v": (dv_KTC, None)}
        for name, (d_HTC, normed) in turned.items():
            site = getattr(attention, f"{name}_proj")
            buffer, d_TX = _roomy(h_TD, d_HTC.shape[0] * attention.head_dim, site)
            d_THC = d_TX.unflatten(1, (-1, attention.head_dim))
            turned_THC = d_THC if normed is None else torch.empty_like(normed.before)
            if name == "v" or not self.turns:
                turned_THC.copy_(d_HTC.transpose(0, 1))
            else:
                rotate(_dense(d_HTC.transpose(0, 1)), around.cos, around.sin, turned_THC, back=True)
            if normed is not None:
                flat, before = turned_THC.flatten(0, 1), normed.before.flatten(0, 1)
                _norm_back(getattr(attention, f"{name}_norm"), flat, before, normed.inverse, around, flat)
                d_THC.copy_(turned_THC)
            part_TD = _backward(site, n_TD, d_TX, kept.sites[name], buffer, around)
            dn_TD = part_TD if dn_TD is None else dn_TD.add_(part_TD)
        assert dn_TD is not None
        return dn_TD

    @staticmethod
    def _attended_rows(attended_HTC: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """Heads side by side, [T, H C], with the room that their site wants behind them."""
        num_heads, _, channels = attended_HTC.shape
        buffer, o_TX = _roomy(attended_HTC[0], num_heads * channels, site)
        o_TX.unflatten(1, (num_heads, channels)).copy_(attended_HTC.detach().transpose(0, 1))
        return buffer, o_TX


class _LayerFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_TD: Tensor, layer: LlamaLayer, around: Around) -> Tensor:
        out_TD, kept = layer.run(h_TD, around, keep=not around.recompute)
        ctx.save_for_backward(h_TD)
        ctx.layer, ctx.around, ctx.kept = layer, around, kept
        return out_TD

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (h_TD,) = ctx.saved_tensors
        layer: LlamaLayer = ctx.layer
        kept = ctx.kept
        if kept is None:
            kept = layer.run(h_TD, ctx.around, keep=True)[1]
        assert kept is not None
        ctx.kept = None
        return layer.run_back(h_TD, grad_outputs[0], kept, ctx.around), None, None


def head_of(attention: Any) -> Head:
    """What a layer's attention is besides its tensors, as transformers' module says."""
    own = vars(attention)
    # Mistral's attention reads the config; in another family's config such a number is a leftover that nobody reads.
    elsewhere = attention.config.sliding_window if attention.config.model_type == "mistral" else None
    window = own.get("sliding_window", elsewhere)
    return Head(layer=attention.layer_idx, scaling=attention.scaling, window=window)


def _roomy(like: Tensor, width: int, *sites: Site) -> tuple[Tensor, Tensor]:
    """A buffer of as many rows as `like`, and its first `width` columns; the others are room for the sites."""
    room = max((site.room for site in sites if isinstance(site, AdaptedLinear)), default=0)
    buffer = like.new_empty(like.shape[0], width + room)
    return buffer, buffer[:, :width]


def _forward(site: Site, x_TD: Tensor, room: Tensor, packed: PackedSites | None) -> tuple[Tensor, Kept | None]:
    if packed is not None and (out_TF := packed.product(site, x_TD)) is not None:
        return out_TF, None
    kept = None
    if isinstance(site, AdaptedLinear):
        y_TF, kept = site.apply_to(x_TD, room)
    else:
        y_TF = matmul(x_TD, site.weight.T)
    if site.bias is not None:
        y_TF += site.bias
    return y_TF, kept


def _backward(site: Site, x_TD: Tensor, dy_TF: Tensor, kept: Kept | None, room: Tensor, around: Around) -> Tensor:
    """Gradient of the input; adds those of the slots, or of the weights where they train."""
    if isinstance(site, AdaptedLinear):
        assert kept is not None
        return site.pull_back(x_TD, dy_TF, kept, room)
    gradient = around.gradients.get(site.weight)
    if gradient is not None:
        add_product(gradient, dy_TF.T, x_TD)
    if site.bias is not None and (gradient := around.gradients.get(site.bias)) is not None:
        gradient.add_(dy_TF.sum(0, dtype=gradient.dtype))
    return matmul(dy_TF, site.weight)


def _dense(gradient: Tensor) -> Tensor:
    """With channels side by side, however autograd left it."""
    return gradient if gradient.stride(-1) == 1 else gradient.contiguous()


def _norm(norm: Any, h_TD: Tensor, out_TD: Tensor) -> Tensor:
    """Write the norm of h; returns its factor."""
    return rms_norm(h_TD, norm.weight, norm.variance_epsilon, out_TD)


def _norm_back(
    norm: Any,
    dn_TD: Tensor,
    h_TD: Tensor,
    inverse: Tensor,
    around: Around,
    out_TD: Tensor,
    add_TD: Tensor | None = None,
) -> None:
    rms_norm_backward(
        dn_TD, h_TD, norm.weight, inverse, out_TD, add_TD=add_TD, grad_weight_D=around.gradients.get(norm.weight)
    )


def _head_norm(norm: Any | None, x_THC: Tensor) -> tuple[Tensor, Normed | None]:
    """The norm of each head's vector, for families that have one."""
    if norm is None:
        return x_THC, None
    out_THC = torch.empty_like(x_THC)
    return out_THC, Normed(before=x_THC, inverse=_norm(norm, x_THC.flatten(0, 1), out_THC.flatten(0, 1)))


class NormFunction(torch.autograd.Function):
    """The norm behind the last layer, for autograd."""

    @staticmethod
    def forward(ctx: Any, h_TD: Tensor, norm: nn.Module, around: Around) -> Tensor:
        n_TD = torch.empty_like(h_TD)
        inverse = _norm(norm, h_TD, n_TD)
        ctx.save_for_backward(h_TD, inverse)
        ctx.norm, ctx.around = norm, around
        return n_TD

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        h_TD, inverse = ctx.saved_tensors
        dh_TD = torch.empty_like(h_TD)
        _norm_back(ctx.norm, _dense(grad_outputs[0]), h_TD, inverse, ctx.around, dh_TD)
        return dh_TD, None, None
