"""The compiled pieces behind Python functions: shapes and strides are checked here, numbers are made in `pieces.cpp`.

Tensors lie on the CPU and are fp32 or bf16, channels side by side; rows may be further apart than they are wide.
Suffixes: T rows, D and F channels, H heads, C channels of a head, P loss positions, V vocabulary; B matrices of scores
with Q queries and L keys each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lowregret.kernels.build import library

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_ARGUMENTS = {
    "rms_norm": (_P, _I, _P, _P, _I, _P, _I, _I, _F, _I),
    "rms_norm_backward": (_P, _I, _P, _I, _P, _P, _P, _I, _P, _I, _I, _I),
    "rotate": (_P, _I, _I, _P, _P, _P, _I, _I, _I, _I, _I, _F),
    "swiglu": (_P, _P, _P, _I, _I, _I),
    "swiglu_backward": (_P, _P, _P, _P, _I, _P, _I, _I, _I),
    "nll": (_P, _P, _P, _P, _P, _I, _I),
    "nll_gradient": (_P, _P, _P, _P, _P, _I, _I),
    "causal_softmax": (_P, _I, _I, _I, _F),
    "causal_softmax_backward": (_P, _P, _I, _I, _I, _F),
}


def serves(tensor: Tensor) -> bool:
    """Whether the compiled pieces are there and take this tensor's format."""
    return tensor.device.type == "cpu" and tensor.dtype in NAMES and library() is not None


@cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    found = library()
    assert found is not None
    function = getattr(found, f"{name}_{NAMES[dtype]}")
    function.argtypes, function.restype = _ARGUMENTS[name], None
    return function


def _same(*tensors: Tensor) -> torch.dtype:
    """Their one format; the last dimension of each is dense."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        assert tensor.dtype == dtype
        assert tensor.stride(-1) == 1
    return dtype


def rms_norm(h_TD: Tensor, inverse_T: Tensor, weight_D: Tensor, eps: float, out_TD: Tensor, *, known: bool) -> None:
    """Write h * inverse * weight to `out_TD`; where not `known`, the fp32 `inverse_T` is written first."""
    rows, width = h_TD.shape
    function = _function("rms_norm", _same(h_TD, weight_D, out_TD))
    assert inverse_T.dtype == torch.float32
    assert inverse_T.is_contiguous()
    function(
        *(h_TD.data_ptr(), h_TD.stride(0), weight_D.data_ptr(), out_TD.data_ptr(), out_TD.stride(0)),
        *(inverse_T.data_ptr(), rows, width, eps, int(known)),
    )


def rms_norm_backward(
    dn_TD: Tensor, h_TD: Tensor, weight_D: Tensor, inverse_T: Tensor, add_TD: Tensor | None, out_TD: Tensor
) -> None:
    """Write the gradient of the norm's input, plus `add_TD`, to `out_TD`, which may be `add_TD`."""
    rows, width = h_TD.shape
    function = _function(
        "rms_norm_backward", _same(dn_TD, h_TD, weight_D, out_TD, *([] if add_TD is None else [add_TD]))
    )
    assert inverse_T.is_contiguous()
    function(
        *(dn_TD.data_ptr(), dn_TD.stride(0), h_TD.data_ptr(), h_TD.stride(0), weight_D.data_ptr()),
        inverse_T.data_ptr(),
        *((None, 0) if add_TD is None else (add_TD.data_ptr(), add_TD.stride(0))),
        *(out_TD.data_ptr(), out_TD.stride(0), rows, width),
    )


def rotate(x_THC: Tensor, cos_TC: Tensor, sin_TC: Tensor, out_THC: Tensor, *, back: bool) -> None:
    """Write x, turned by its position's angles or back, to `out_THC`, another tensor."""
    rows, heads, channels = x_THC.shape
    function = _function("rotate", _same(x_THC, cos_TC, sin_TC, out_THC))
    assert cos_TC.is_contiguous()
    assert sin_TC.is_contiguous()
    function(
        *(x_THC.data_ptr(), x_THC.stride(0), x_THC.stride(1), cos_TC.data_ptr(), sin_TC.data_ptr()),
        *(out_THC.data_ptr(), out_THC.stride(0), out_THC.stride(1), rows, heads, channels, -1.0 if back else 1.0),
    )


def swiglu(gate_TF: Tensor, up_TF: Tensor, out_TF: Tensor) -> None:
    """Write silu(gate) * up to `out_TF`."""
    function = _function("swiglu", _same(gate_TF, up_TF, out_TF))
    assert gate_TF.is_contiguous()
    assert up_TF.is_contiguous()
    function(gate_TF.data_ptr(), up_TF.data_ptr(), out_TF.data_ptr(), out_TF.stride(0), *gate_TF.shape)


def swiglu_backward(dm_TF: Tensor, gate_TF: Tensor, up_TF: Tensor, dgate_TF: Tensor, dup_TF: Tensor) -> None:
    """Write the gradients of gate and up."""
    function = _function("swiglu_backward", _same(dm_TF, gate_TF, up_TF, dgate_TF, dup_TF))
    for dense in (dm_TF, gate_TF, up_TF):
        assert dense.is_contiguous()
    function(
        *(dm_TF.data_ptr(), gate_TF.data_ptr(), up_TF.data_ptr(), dgate_TF.data_ptr(), dgate_TF.stride(0)),
        *(dup_TF.data_ptr(), dup_TF.stride(0), *gate_TF.shape),
    )


def nll(logits_PV: Tensor, targets_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """nll of each row's target, the row's largest logit and its sum of exp(logit - largest); all fp32 [P]."""
    assert logits_PV.is_contiguous()
    assert targets_P.dtype == torch.int64
    assert targets_P.is_contiguous()
    rows, width = logits_PV.shape
    losses_P, largest_P, total_P = (torch.empty(rows, dtype=torch.float32) for _ in range(3))
    _function("nll", logits_PV.dtype)(
        *(logits_PV.data_ptr(), targets_P.data_ptr(), largest_P.data_ptr(), total_P.data_ptr(), losses_P.data_ptr()),
        *(rows, width),
    )
    return losses_P, largest_P, total_P


def nll_gradient(logits_PV: Tensor, targets_P: Tensor, largest_P: Tensor, total_P: Tensor, weights_P: Tensor) -> None:
    """Put weights * (softmax - onehot) in the place of the logits; the rest as `nll` gave it."""
    for dense in (largest_P, total_P, weights_P):
        assert dense.is_contiguous()
        assert dense.dtype == torch.float32
    rows, width = logits_PV.shape
    _function("nll_gradient", logits_PV.dtype)(
        *(logits_PV.data_ptr(), targets_P.data_ptr(), largest_P.data_ptr(), total_P.data_ptr(), weights_P.data_ptr()),
        *(rows, width),
    )


def causal_softmax(scores_BQL: Tensor, scale: float) -> None:
    """Put softmax(scores * scale) in the scores' place, fp32; row r sees the keys up to r mod L, others weigh 0."""
    assert scores_BQL.is_contiguous()
    _function("causal_softmax", scores_BQL.dtype)(scores_BQL.data_ptr(), *scores_BQL.shape, scale)


def causal_softmax_backward(gradient_BQL: Tensor, probabilities_BQL: Tensor, scale: float) -> None:
    """Put the gradient of the scores in the place of that of the probabilities, fp32."""
    assert gradient_BQL.is_contiguous()
    assert probabilities_BQL.is_contiguous()
    function = _function("causal_softmax_backward", _same(gradient_BQL, probabilities_BQL))
    function(gradient_BQL.data_ptr(), probabilities_BQL.data_ptr(), *gradient_BQL.shape, scale)
