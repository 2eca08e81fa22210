"""Negative log-likelihood of the targets, and its gradient with respect to the logits.

The normaliser is passed in, so micro-batches add up to one large batch. `nll_reference` is the same by autograd.
Suffixes: P loss positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lowregret.kernels import native, one_kernel


def nll(logits_PV: Float[Tensor, "P V"], targets_P: Int[Tensor, " P"]) -> Float[Tensor, " P"]:
    """-log softmax(logits)[target] in nats, computed in fp32 (fp64 where the logits are)."""
    if native.serves(logits_PV) and not logits_PV.requires_grad:
        return native.nll(logits_PV.contiguous(), targets_P.contiguous())[0]
    wide = logits_PV.to(torch.promote_types(logits_PV.dtype, torch.float32))
    return torch.logsumexp(wide, -1) - wide.gather(-1, targets_P[:, None])[:, 0]


def nll_with_gradient(
    logits_PV: Float[Tensor, "P V"],
    targets_P: Int[Tensor, " P"],
    weigh: Callable[[Float[Tensor, " P"]], Float[Tensor, " P"]],
) -> tuple[Float[Tensor, " P"], Float[Tensor, "P V"]]:
    """nll, and weights * d nll / d logits = weights * (softmax - onehot), in the logits' dtype.

    Where compiled pieces serve, on the CPU or on CUDA, the gradient takes the place of the logits. Else one fp32 buffer
    is worked on in place: torch.logsumexp alone took as long as all of this (11 % of a step).

    Args:
        logits_PV: used up.
        weigh: from the nll, fp32, to the derivative of the objective with respect to it. Constant in supervised
            training, where the objective is a weighted sum; a policy gradient's depends on the likelihood itself.
    """
    if native.serves(logits_PV):
        logits_PV, targets_P = logits_PV.contiguous(), targets_P.contiguous()
        losses_P, largest_P, total_P = native.nll(logits_PV, targets_P)
        native.nll_gradient(logits_PV, targets_P, largest_P, total_P, weigh(losses_P).float().contiguous())
        return losses_P, logits_PV
    if one_kernel.serves(logits_PV) and logits_PV.dtype != torch.float64:
        losses_P, largest_P, total_P = _normalised(logits_PV, targets_P)
        _put_gradient(logits_PV, targets_P, largest_P, total_P, weigh(losses_P).float())
        return losses_P, logits_PV
    wide = logits_PV.to(torch.promote_types(logits_PV.dtype, torch.float32), copy=True)
    wide.sub_(wide.amax(-1, keepdim=True))
    target_P = wide.gather(-1, targets_P[:, None])[:, 0]
    total_P = wide.exp_().sum(-1)
    losses_P = total_P.log() - target_P
    weights_P = weigh(losses_P).to(wide.dtype)
    gradient = wide.mul_((weights_P / total_P)[:, None])
    gradient.scatter_add_(-1, targets_P[:, None], -weights_P[:, None])
    return losses_P, gradient.to(logits_PV.dtype)


@one_kernel.one_kernel
def _normalised(logits_PV: Tensor, targets_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """nll, the largest logit and the sum of exp(logit - largest) of each row."""
    wide_PV = logits_PV.float()
    largest_P = wide_PV.amax(-1)
    total_P = (wide_PV - largest_P[:, None]).exp().sum(-1)
    return total_P.log() + largest_P - wide_PV.gather(-1, targets_P[:, None])[:, 0], largest_P, total_P


@one_kernel.one_kernel
def _put_gradient(logits_PV: Tensor, targets_P: Tensor, largest_P: Tensor, total_P: Tensor, weights_P: Tensor) -> None:
    """Write weights * (softmax - onehot) in place of the logits."""
    shares_PV = (logits_PV.float() - largest_P[:, None]).exp() / total_P[:, None]
    is_target_PV = torch.arange(logits_PV.shape[-1], device=logits_PV.device) == targets_P[:, None]
    logits_PV.copy_((shares_PV - is_target_PV.float()) * weights_P[:, None])


def nll_reference(
    logits_PV: Float[Tensor, "P V"], targets_P: Int[Tensor, " P"], weights_P: Float[Tensor, " P"]
) -> tuple[Float[Tensor, " P"], Float[Tensor, "P V"]]:
    """`nll_with_gradient` by torch's cross entropy and autograd."""
    leaf = logits_PV.detach().requires_grad_()
    with torch.enable_grad():
        losses_P = torch.nn.functional.cross_entropy(leaf, targets_P, reduction="none")
        (gradient,) = torch.autograd.grad((losses_P * weights_P).sum(), leaf)
    return losses_P.detach(), gradient
