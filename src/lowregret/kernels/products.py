"""Matrix products in an fp32 accumulator, rounded once, at the processor's best speed.

A CPU that does not multiply bf16 (AVX2, say) gets bf16 products from torch at a fifth of its fp32 speed. There the
operands are widened, which is exact, multiplied in fp32 and the sum is rounded once: the same arithmetic, as fast as
fp32, with weights and activations still kept in bf16 (`benchmarks/pieces.py`).
Suffixes: M rows, K summed over, N columns; T rows, D in, F out.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from lowregret.kernels import native

WIDENED_WHOLE = 1 << 20
"""Elements up to which the right operand is widened at once."""
WIDENED_ELEMENTS = 1 << 19
"""Elements of a larger one that are widened at a time, 2 MiB of fp32, so that they are multiplied before they leave the
cache: 16 rows by an unembedding of 28 million took half as long as in blocks of 16 MiB (`docs/log.md`)."""


def matmul(a_MK: Float[Tensor, "M K"], b_KN: Float[Tensor, "K N"]) -> Float[Tensor, "M N"]:
    """a b, the sum in fp32 (fp64 for fp64) and rounded once to the operands' format."""
    if not widens(a_MK):
        return a_MK @ b_KN
    num_summed, num_columns = b_KN.shape
    if b_KN.numel() <= WIDENED_WHOLE:
        return (a_MK.float() @ b_KN.float()).to(a_MK.dtype)
    if num_columns > num_summed:
        size = max(1, WIDENED_ELEMENTS // num_summed)
        wide_MK = a_MK.float()
        return torch.cat([(wide_MK @ b_KX.float()).to(a_MK.dtype) for b_KX in b_KN.split(size, dim=1)], dim=1)
    sum_MN = a_MK.new_zeros(a_MK.shape[0], num_columns, dtype=torch.float32)
    size = max(1, WIDENED_ELEMENTS // num_columns)
    for a_MX, b_XN in zip(a_MK.split(size, dim=1), b_KN.split(size, dim=0), strict=True):
        sum_MN.addmm_(a_MX.float(), b_XN.float())
    return sum_MN.to(a_MK.dtype)


def add_product(sum_MN: Float[Tensor, "M N"], a_MK: Float[Tensor, "M K"], b_KN: Float[Tensor, "K N"]) -> None:
    """Add a b to an accumulator, which is fp32 where the operands are bf16."""
    if sum_MN.dtype == a_MK.dtype:
        sum_MN.addmm_(a_MK, b_KN)
    elif widens(a_MK):
        sum_MN.addmm_(a_MK.float(), b_KN.float())
    else:
        accumulate_into(sum_MN, a_MK @ b_KN)


def accumulate_into(total: Tensor, part: Tensor) -> None:
    """Add a tensor of the same shape to an accumulator; torch adds bf16 to fp32 at a fifth of the speed."""
    if part.dtype == torch.bfloat16 and part.is_contiguous() and native.updates(total):
        native.add_bf16(total, part)
    else:
        total.add_(part)


def accumulate_in_fp32() -> None:
    """Forbid bf16 partial sums in CUDA's bf16 products, which torch allows by default where a sum is split."""
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def widens(operand: Tensor) -> bool:
    """Whether products of this operand are made from fp32 copies: bf16 on a CPU that does not multiply it."""
    return operand.dtype == torch.bfloat16 and operand.device.type == "cpu" and not _cpu_multiplies_bf16()


@cache
def _cpu_multiplies_bf16() -> bool:
    """True where not known to be False: other architectures keep torch's own choice."""
    found = torch.cpu.get_capabilities()
    if found.get("architecture") != "x86_64":
        return True
    return bool(found["avx512_bf16"] or found["amx_bf16"])


def linear(x_TD: Tensor, weight_FD: Tensor) -> Tensor:
    """x W^T with `matmul` in both directions, for autograd; x of shape [T, D]."""
    return cast(Tensor, _LinearFunction.apply(x_TD, weight_FD))


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_FD: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, weight_FD)
        return matmul(x_TD, weight_FD.T)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (dy_TF,) = grad_outputs
        x_TD, weight_FD = ctx.saved_tensors
        dx_TD = matmul(dy_TF, weight_FD) if ctx.needs_input_grad[0] else None
        return dx_TD, matmul(dy_TF.T, x_TD) if ctx.needs_input_grad[1] else None
