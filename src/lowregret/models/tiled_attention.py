"""Packed causal attention in bf16 on a CPU that multiplies bf16, forward and backward by a kernel of our own.

torch's fused attention for CPUs has a backward that took a quarter of a LoRA step, and wants documents of one length;
this one takes them as they lie in the packed row. Scores and sums are fp32, softmax weights are rounded once, as there.
The same formula as a loop is `attention.packed_attention_reference`; tests hold the two equal.
Suffixes: H heads, K key-value heads, T packed tokens, N documents, C channels of a head.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowregret.kernels import native
from lowregret.kernels.native import BLOCK, Way, best_way


def serves(q_HTC: Tensor, v_KTC: Tensor) -> bool:
    """Whether the kernel takes these and is the faster way: bf16, channels by 32, a processor with bf16 products."""
    if q_HTC.dtype != torch.bfloat16 or not native.serves(q_HTC) or best_way() is None:
        return False
    channels = q_HTC.shape[-1]
    return channels == v_KTC.shape[-1] and channels % BLOCK == 0


def tiled_attention(
    q_HTC: Float[Tensor, "H T C"],
    k_KTC: Float[Tensor, "K T C"],
    v_KTC: Float[Tensor, "K T C"],
    lengths_N: Int64[Tensor, " N"],
    scaling: float,
    window: int | None = None,
    way: Way | None = None,
) -> Float[Tensor, "H T C"]:
    """softmax(q k^T * scaling) v within each document, causal; heads H are K groups that share keys and values.

    Args:
        lengths_N: of the documents one after another.
        way: of multiplying; None: the fastest.
    """
    way = way or best_way() or Way.PLAIN
    return cast(Tensor, _TiledAttention.apply(q_HTC, k_KTC, v_KTC, lengths_N, scaling, window, way))


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_HTC: Tensor,
        k_KTC: Tensor,
        v_KTC: Tensor,
        lengths_N: Tensor,
        scaling: float,
        window: int | None,
        way: Way,
    ) -> Tensor:
        q_HTC, k_KTC, v_KTC = (_dense(tensor) for tensor in (q_HTC, k_KTC, v_KTC))
        out_HTC, lse_HT = native.attention_forward(
            q_HTC, k_KTC, v_KTC, lengths_N, scale=scaling, window=window, way=way
        )
        ctx.save_for_backward(q_HTC, k_KTC, v_KTC, out_HTC, lse_HT, lengths_N)
        ctx.scaling, ctx.window, ctx.way = scaling, window, way
        return out_HTC

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # by the decorator's type
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        q_HTC, k_KTC, v_KTC, out_HTC, lse_HT, lengths_N = ctx.saved_tensors
        gradients = native.attention_backward(
            *(_dense(grad_outputs[0]), q_HTC, k_KTC, v_KTC, out_HTC, lse_HT, lengths_N),
            scale=ctx.scaling,
            window=ctx.window,
            way=ctx.way,
        )
        return *gradients, None, None, None, None


def _dense(tensor: Tensor) -> Tensor:
    """With channels side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
