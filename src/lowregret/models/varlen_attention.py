"""Causal attention of a packed row by flash attention, in one call for all documents: the way on CUDA.

Nothing is filled up, gathered or masked: the kernel is told where documents begin.
The same formula as a loop is `attention.packed_attention_reference`; a test on a GPU holds the two equal.
Suffixes: N documents, H heads, K key-value heads, T packed tokens, C channels of a head.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

MOST_CHANNELS = 256
"""Of a head, for the kernel; they come in multiples of `CHANNEL_MULTIPLE`."""
CHANNEL_MULTIPLE = 8
OLDEST = (8, 0)
"""Compute capability that the kernel needs (Ampere)."""


def serves(q_HTC: Tensor, v_KTC: Tensor) -> bool:
    """Whether the kernel takes these: bf16 on a GPU that it runs on, heads of a size that it knows."""
    channels = q_HTC.shape[-1]
    fits = channels <= MOST_CHANNELS and channels % CHANNEL_MULTIPLE == 0 and v_KTC.shape[-1] == channels
    return fits and q_HTC.dtype == torch.bfloat16 and q_HTC.device.type == "cuda" and _runs_on(q_HTC.device)


@cache
def _runs_on(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= OLDEST


def varlen_attention(
    q_HTC: Float[Tensor, "H T C"],
    k_KTC: Float[Tensor, "K T C"],
    v_KTC: Float[Tensor, "K T C"],
    boundaries: Int[Tensor, " N1"],
    longest: int,
    scaling: float,
    window: int | None = None,
) -> Float[Tensor, "H T C"]:
    """softmax(q k^T * scaling) v within each document, causal.

    Args:
        boundaries: where documents begin, and T behind the last; int32 [N + 1].
        longest: tokens of the longest document.
        window: positions that a query sees, its own included; None: all before it.
    """
    # The kernel counts the positions to the left of a query, and takes -1 for all.
    left = -1 if window is None or window >= longest else window - 1
    q_THC, k_TKC, v_TKC = (t.transpose(0, 1) for t in (q_HTC, k_KTC, v_KTC))
    attended = varlen_attn(
        q_THC,
        k_TKC,
        v_TKC,
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scaling,
        window_size=(left, 0),
        enable_gqa=q_HTC.shape[0] != k_KTC.shape[0],
    )
    assert isinstance(attended, Tensor)
    return attended.transpose(0, 1)
