"""Causal attention of many short documents of one length, with its scores in memory and its backward written out.

torch's fused kernel never holds the scores, which pays where they are large. A batch of 128 documents of 32 tokens
takes it 2.6 times as long as three batched products with a softmax in between (benchmarks/pieces.py).
The same formula as a loop is `attention.packed_attention_reference`; a test holds the two equal.
Suffixes: N documents, H heads, K key-value heads, G queries of a key-value head, L tokens, C channels of a head.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from lowregret.kernels import native

LONGEST = 32
"""Documents up to this length are attended densely."""


def serves(q_NHLC: Tensor, v_NKLC: Tensor) -> bool:
    """Whether this is the faster way: fp32 on a CPU with the compiled pieces, short documents."""
    fits = q_NHLC.shape[2] <= LONGEST and q_NHLC.shape[-1] == v_NKLC.shape[-1]
    return fits and q_NHLC.dtype == torch.float32 and native.serves(q_NHLC)


def dense_attention(
    q_NHLC: Float[Tensor, "N H L C"], k_NKLC: Float[Tensor, "N K L C"], v_NKLC: Float[Tensor, "N K L C"], scaling: float
) -> Float[Tensor, "N H L C"]:
    """softmax(q k^T * scaling) v, causal; heads H are K groups of neighbours that share keys and values."""
    return cast(Tensor, _DenseAttention.apply(q_NHLC, k_NKLC, v_NKLC, scaling))


class _DenseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_NHLC: Tensor, k_NKLC: Tensor, v_NKLC: Tensor, scaling: float) -> Tensor:
        num_matrices = k_NKLC.shape[0] * k_NKLC.shape[1]
        q, k, v = (t.reshape(num_matrices, -1, t.shape[-1]) for t in (q_NHLC, k_NKLC, v_NKLC))
        weights = torch.bmm(q, k.mT)
        native.causal_softmax(weights, scaling)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scaling, ctx.shapes = scaling, (q_NHLC.shape, k_NKLC.shape)
        return torch.bmm(weights, v).view(q_NHLC.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights = ctx.saved_tensors
        of_queries, of_keys = ctx.shapes
        do = grad_outputs[0].reshape(q.shape)
        dscores = torch.bmm(do, v.mT)
        native.causal_softmax_backward(dscores, weights, ctx.scaling)
        dq, dk, dv = torch.bmm(dscores, k), torch.bmm(dscores.mT, q), torch.bmm(weights.mT, do)
        return dq.view(of_queries), dk.view(of_keys), dv.view(of_keys), None
