"""The pieces of a Llama-shaped layer that are no matrix products, forward and backward, without autograd.

Each is one pass over memory where it is compiled: by `kernels.native` for fp32 and bf16 on a CPU with a compiler, by
`kernels.one_kernel` on CUDA. Elsewhere it is a few of torch's operations, written without `out=`, which the latter does
not take for views. Beside it stands the formula that it computes (`*_reference`, by autograd); tests hold all equal.
Results go where the caller says, so that a product's operand is made in the place that the product reads.
Suffixes: T tokens, D channels of the row, H heads, C channels of a head, F inner channels of the MLP.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lowregret.kernels import native
from lowregret.kernels.one_kernel import one_kernel


def rms_norm(
    h_TD: Float[Tensor, "T D"], weight_D: Float[Tensor, " D"], eps: float, out_TD: Float[Tensor, "T D"]
) -> Float[Tensor, "T 1"]:
    """Write h / sqrt(mean(h^2) + eps) * weight to `out_TD`; returns 1 / sqrt(...), fp32 (fp64 for fp64)."""
    if native.serves(h_TD):
        inverse = torch.empty(h_TD.shape[0], 1, dtype=torch.float32)
        native.rms_norm(h_TD, inverse, weight_D, eps, out_TD, known=False)
        return inverse
    return _rms_norm(h_TD, weight_D, eps, out_TD)


@one_kernel
def _rms_norm(h_TD: Tensor, weight_D: Tensor, eps: float, out_TD: Tensor) -> Tensor:
    wide = torch.promote_types(h_TD.dtype, torch.float32)
    norm = torch.linalg.vector_norm(h_TD, dim=-1, keepdim=True, dtype=wide)
    inverse = norm.square_().div_(h_TD.shape[-1]).add_(eps).rsqrt_()
    _scale(h_TD, inverse, weight_D, out_TD)
    return inverse


def _scale(h_TD: Tensor, inverse: Tensor, weight_D: Tensor, out_TD: Tensor) -> None:
    out_TD.copy_((h_TD * inverse).mul_(weight_D))


def rms_scale(
    h_TD: Float[Tensor, "T D"],
    inverse: Float[Tensor, "T 1"],
    weight_D: Float[Tensor, " D"],
    out_TD: Float[Tensor, "T D"],
) -> None:
    """Write h * inverse * weight to `out_TD`, rounded once; `inverse` as `rms_norm` gave it."""
    if native.serves(h_TD):
        native.rms_norm(h_TD, inverse, weight_D, 0.0, out_TD, known=True)
    else:
        _rms_scale(h_TD, inverse, weight_D, out_TD)


_rms_scale = one_kernel(_scale)


def rms_norm_backward(
    dn_TD: Float[Tensor, "T D"],
    h_TD: Float[Tensor, "T D"],
    weight_D: Float[Tensor, " D"],
    inverse: Float[Tensor, "T 1"],
    out_TD: Float[Tensor, "T D"],
    *,
    add_TD: Float[Tensor, "T D"] | None = None,
    grad_weight_D: Float[Tensor, " D"] | None = None,
) -> None:
    """Write the gradient of the norm's input, plus `add_TD`, to `out_TD`, which may be `add_TD`.

    With g = dn * weight and i = `inverse` it is i g - h i^3 mean(g h). The weight's gradient is added to
    `grad_weight_D`.
    """
    if grad_weight_D is not None:
        grad_weight_D.add_((dn_TD.to(inverse.dtype) * h_TD * inverse).sum(0))
    if native.serves(dn_TD):
        native.rms_norm_backward(dn_TD, h_TD, weight_D, inverse, add_TD, out_TD)
    else:
        _rms_norm_backward(dn_TD, h_TD, weight_D, inverse, add_TD, out_TD)


@one_kernel
def _rms_norm_backward(
    dn_TD: Tensor, h_TD: Tensor, weight_D: Tensor, inverse: Tensor, add_TD: Tensor | None, out_TD: Tensor
) -> None:
    g_TD = dn_TD.to(inverse.dtype) * weight_D
    dot = (g_TD * h_TD).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-h_TD.shape[-1])
    g_TD.mul_(inverse).addcmul_(h_TD.to(inverse.dtype), dot)
    out_TD.copy_(g_TD if add_TD is None else g_TD.add_(add_TD))


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
    if native.serves(x_THC):
        native.rotate(x_THC, cos_TC, sin_TC, out_THC, back=back)
    else:
        _rotate(x_THC, cos_TC, sin_TC, out_THC, -1.0 if back else 1.0)


@one_kernel
def _rotate(x_THC: Tensor, cos_TC: Tensor, sin_TC: Tensor, out_THC: Tensor, sign: float) -> None:
    half = x_THC.shape[-1] // 2
    sin_T1C = sin_TC[:, None, half:]
    out_THC.copy_(x_THC * cos_TC[:, None])
    out_THC[..., :half].addcmul_(x_THC[..., half:], sin_T1C, value=-sign)
    out_THC[..., half:].addcmul_(x_THC[..., :half], sin_T1C, value=sign)


def rotate_reference(x_THC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """The formula, by autograd."""
    first, second = x_THC.chunk(2, -1)
    return x_THC * cos_TC[:, None] + torch.cat([-second, first], -1) * sin_TC[:, None]


def swiglu(gate_TF: Float[Tensor, "T F"], up_TF: Float[Tensor, "T F"], out_TF: Float[Tensor, "T F"]) -> None:
    """Write silu(gate) * up to `out_TF`."""
    if native.serves(gate_TF):
        native.swiglu(gate_TF, up_TF, out_TF)
    else:
        _swiglu(gate_TF, up_TF, out_TF)


@one_kernel
def _swiglu(gate_TF: Tensor, up_TF: Tensor, out_TF: Tensor) -> None:
    out_TF.copy_(torch.nn.functional.silu(gate_TF).mul_(up_TF))


def swiglu_backward(
    dm_TF: Float[Tensor, "T F"],
    gate_TF: Float[Tensor, "T F"],
    up_TF: Float[Tensor, "T F"],
    dgate_TF: Float[Tensor, "T F"],
    dup_TF: Float[Tensor, "T F"],
) -> None:
    """Write the gradients of gate and up: dm up sigmoid'(...) and dm silu(gate)."""
    if native.serves(dm_TF):
        native.swiglu_backward(dm_TF, gate_TF, up_TF, dgate_TF, dup_TF)
    else:
        _swiglu_backward(dm_TF, gate_TF, up_TF, dgate_TF, dup_TF)


@one_kernel
def _swiglu_backward(dm_TF: Tensor, gate_TF: Tensor, up_TF: Tensor, dgate_TF: Tensor, dup_TF: Tensor) -> None:
    dup_TF.copy_(torch.nn.functional.silu(gate_TF).mul_(dm_TF))
    dgate_TF.copy_(torch.ops.aten.silu_backward(dm_TF * up_TF, gate_TF))


def swiglu_reference(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """The formula, by autograd."""
    return torch.nn.functional.silu(gate_TF) * up_TF
