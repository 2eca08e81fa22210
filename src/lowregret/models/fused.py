"""The pieces of a Llama-shaped layer that are no matrix products, forward and backward, without autograd.

Each stands beside the formula that it computes (`*_reference`, by autograd); tests hold the pairs equal. Results go
where the caller says, so that a product's operand is made in the place that the product reads.
Suffixes: T tokens, D channels of the row, H heads, C channels of a head, F inner channels of the MLP.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rms_inverse(h_TD: Float[Tensor, "*T D"], eps: float) -> Float[Tensor, "*T 1"]:
    """1 / sqrt(mean(h^2) + eps), in fp32 (fp64 for fp64)."""
    wide = torch.promote_types(h_TD.dtype, torch.float32)
    norm = torch.linalg.vector_norm(h_TD, dim=-1, keepdim=True, dtype=wide)
    return norm.square_().div_(h_TD.shape[-1]).add_(eps).rsqrt_()


def rms_scale(
    h_TD: Float[Tensor, "*T D"],
    inverse: Float[Tensor, "*T 1"],
    weight_D: Float[Tensor, " D"],
    out_TD: Float[Tensor, "*T D"],
) -> None:
    """Write h * inverse * weight to `out_TD`, rounded once; `inverse` as `rms_inverse` gives it."""
    if h_TD.dtype == inverse.dtype:
        torch.mul(h_TD, inverse, out=out_TD).mul_(weight_D)
    else:
        out_TD.copy_((h_TD * inverse).mul_(weight_D))


def rms_norm_backward(
    dn_TD: Float[Tensor, "*T D"],
    h_TD: Float[Tensor, "*T D"],
    weight_D: Float[Tensor, " D"],
    inverse: Float[Tensor, "*T 1"],
    grad_weight_D: Float[Tensor, " D"] | None = None,
) -> Float[Tensor, "*T D"]:
    """Gradient of the norm's input in `dn_TD`'s format; adds the weight's gradient to `grad_weight_D`.

    With g = dn * weight and i = `inverse`: i g - h i^3 mean(g h).
    """
    if grad_weight_D is not None:
        grad_weight_D.add_((dn_TD * h_TD * inverse).flatten(0, -2).sum(0))
    g_TD = (dn_TD.to(inverse.dtype) if dn_TD.dtype != inverse.dtype else dn_TD) * weight_D
    dot = (g_TD * h_TD).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-h_TD.shape[-1])
    return g_TD.mul_(inverse).addcmul_(h_TD.to(inverse.dtype), dot).to(dn_TD.dtype)


def rms_norm_reference(h_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The formula, by autograd."""
    wide = h_TD.to(torch.promote_types(h_TD.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight_D).to(h_TD.dtype)


def rotate(
    x_THC: Float[Tensor, "T H C"],
    cos_TC: Float[Tensor, "T C"],
    sin_TC: Float[Tensor, "T C"],
    out_THC: Float[Tensor, "T H C"],
    *,
    back: bool = False,
) -> None:
    """Write x turned by its position's angles to `out_THC`, another tensor; `back` turns the other way.

    A rotation's gradient is the rotation back. Channel c is paired with c + C/2, as in Llama's and Qwen's checkpoints.
    """
    half = x_THC.shape[-1] // 2
    sin_T1C = sin_TC[:, None, half:]
    torch.mul(x_THC, cos_TC[:, None], out=out_THC)
    sign = -1.0 if back else 1.0
    out_THC[..., :half].addcmul_(x_THC[..., half:], sin_T1C, value=-sign)
    out_THC[..., half:].addcmul_(x_THC[..., :half], sin_T1C, value=sign)


def rotate_reference(x_THC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """The formula, by autograd."""
    first, second = x_THC.chunk(2, -1)
    return x_THC * cos_TC[:, None] + torch.cat([-second, first], -1) * sin_TC[:, None]


def swiglu(
    gate_TF: Float[Tensor, "T F"], up_TF: Float[Tensor, "T F"], out_TF: Float[Tensor, "T F"]
) -> Float[Tensor, "T F"]:
    """Write silu(gate) * up to `out_TF`; returns silu(gate)."""
    activated_TF = torch.nn.functional.silu(gate_TF)
    torch.mul(activated_TF, up_TF, out=out_TF)
    return activated_TF


def swiglu_backward(
    dm_TF: Float[Tensor, "T F"],
    gate_TF: Float[Tensor, "T F"],
    up_TF: Float[Tensor, "T F"],
    activated_TF: Float[Tensor, "T F"],
    dgate_TF: Float[Tensor, "T F"],
    dup_TF: Float[Tensor, "T F"],
) -> None:
    """Write the gradients of gate and up, given silu(gate); `dm_TF` is used up."""
    torch.mul(dm_TF, activated_TF, out=dup_TF)
    dgate_TF.copy_(torch.ops.aten.silu_backward(dm_TF.mul_(up_TF), gate_TF))


def swiglu_reference(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """The formula, by autograd."""
    return torch.nn.functional.silu(gate_TF) * up_TF
