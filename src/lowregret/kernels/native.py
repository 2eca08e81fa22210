"""The compiled pieces behind Python functions: formats, shapes and strides are checked here, numbers are made in
the C++ files beside it.

Tensors lie on the CPU and are fp32 or bf16, channels side by side; rows may be further apart than they are wide.
Suffixes: T rows, D and F channels, H heads, C channels of a head, P loss positions, V vocabulary; B matrices of scores
with Q queries and L keys each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from enum import IntFlag
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
    "sum_rows": (_P, _I, _P, _P, _P, _I, _I),
    "causal_softmax": (_P, _I, _I, _I, _F),
    "causal_softmax_backward": (_P, _P, _I, _I, _I, _F),
    "pack": (_P, _I, _P, _I, _I),
    "product": (_P, _I, _I, _I, _P, _I, _P, _P, _I, _P, _I, _P),
    "attention_forward": (_P, _P, _P, _P, _P, _P, _P, _I, _I, _I, _I, _I, _F, _I, _I),
    "attention_backward": (_P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _I, _I, _I, _I, _I, _F, _I, _I),
    "thin_in": (_P, _I, _I, _I, _P, _I, _I, _P, _I, _P, _I, _I, _I),
    "thin_out": (_P, _I, _P, _I, _I, _P, _P, _I, _I, _I),
    "step": (_P, *([_I] * 8), _F, _F, _F, _P, _P, _P, _P, _I, _P, _P),
    "draw": (_P, _P, _I, _I, _F, _I, _P, _P),
    "attend": (_P, _I, _I, _P, _I, _I, _P, _I, _I, _P, _P, _P, _P, _P, _I, _I, _I, _I, _I, _I, _F, _I),
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


def _is_fp32_of(numbers: Tensor, rows: int) -> None:
    """One dense fp32 number a row."""
    assert numbers.dtype == torch.float32
    assert numbers.numel() == rows
    assert numbers.is_contiguous()


def _are_columns(targets_P: Tensor, rows: int, width: int) -> None:
    """One index a row, of one of its columns."""
    assert targets_P.dtype == torch.int64
    assert targets_P.shape == (rows,)
    assert targets_P.is_contiguous()
    if rows:
        low, high = torch.aminmax(targets_P)
        assert int(low) >= 0
        assert int(high) < width


def rms_norm(h_TD: Tensor, inverse_T: Tensor, weight_D: Tensor, eps: float, out_TD: Tensor, *, known: bool) -> None:
    """Write h * inverse * weight to `out_TD`; where not `known`, the fp32 `inverse_T` is written first."""
    rows, width = h_TD.shape
    function = _function("rms_norm", _same(h_TD, weight_D, out_TD))
    assert weight_D.shape == (width,)
    assert out_TD.shape == h_TD.shape
    _is_fp32_of(inverse_T, rows)
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
    assert weight_D.shape == (width,)
    assert dn_TD.shape == out_TD.shape == h_TD.shape
    assert add_TD is None or add_TD.shape == h_TD.shape
    _is_fp32_of(inverse_T, rows)
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
    assert channels % 2 == 0
    assert cos_TC.shape == sin_TC.shape == (rows, channels)
    assert out_THC.shape == x_THC.shape
    assert cos_TC.is_contiguous()
    assert sin_TC.is_contiguous()
    function(
        *(x_THC.data_ptr(), x_THC.stride(0), x_THC.stride(1), cos_TC.data_ptr(), sin_TC.data_ptr()),
        *(out_THC.data_ptr(), out_THC.stride(0), out_THC.stride(1), rows, heads, channels, -1.0 if back else 1.0),
    )


def swiglu(gate_TF: Tensor, up_TF: Tensor, out_TF: Tensor) -> None:
    """Write silu(gate) * up to `out_TF`."""
    function = _function("swiglu", _same(gate_TF, up_TF, out_TF))
    assert gate_TF.shape == up_TF.shape == out_TF.shape
    assert gate_TF.is_contiguous()
    assert up_TF.is_contiguous()
    function(gate_TF.data_ptr(), up_TF.data_ptr(), out_TF.data_ptr(), out_TF.stride(0), *gate_TF.shape)


def swiglu_backward(dm_TF: Tensor, gate_TF: Tensor, up_TF: Tensor, dgate_TF: Tensor, dup_TF: Tensor) -> None:
    """Write the gradients of gate and up."""
    function = _function("swiglu_backward", _same(dm_TF, gate_TF, up_TF, dgate_TF, dup_TF))
    assert dm_TF.shape == gate_TF.shape == up_TF.shape == dgate_TF.shape == dup_TF.shape
    for dense in (dm_TF, gate_TF, up_TF):
        assert dense.is_contiguous()
    function(
        *(dm_TF.data_ptr(), gate_TF.data_ptr(), up_TF.data_ptr(), dgate_TF.data_ptr(), dgate_TF.stride(0)),
        *(dup_TF.data_ptr(), dup_TF.stride(0), *gate_TF.shape),
    )


def nll(logits_PV: Tensor, targets_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """nll of each row's target, the row's largest logit and its sum of exp(logit - largest); all fp32 [P]."""
    assert logits_PV.is_contiguous()
    rows, width = logits_PV.shape
    _are_columns(targets_P, rows, width)
    losses_P, largest_P, total_P = (torch.empty(rows, dtype=torch.float32) for _ in range(3))
    _function("nll", logits_PV.dtype)(
        *(logits_PV.data_ptr(), targets_P.data_ptr(), largest_P.data_ptr(), total_P.data_ptr(), losses_P.data_ptr()),
        *(rows, width),
    )
    return losses_P, largest_P, total_P


def nll_gradient(logits_PV: Tensor, targets_P: Tensor, largest_P: Tensor, total_P: Tensor, weights_P: Tensor) -> None:
    """Put weights * (softmax - onehot) in the place of the logits; the rest as `nll` gave it."""
    assert logits_PV.is_contiguous()
    rows, width = logits_PV.shape
    _are_columns(targets_P, rows, width)
    for of_rows in (largest_P, total_P, weights_P):
        _is_fp32_of(of_rows, rows)
    _function("nll_gradient", logits_PV.dtype)(
        *(logits_PV.data_ptr(), targets_P.data_ptr(), largest_P.data_ptr(), total_P.data_ptr(), weights_P.data_ptr()),
        *(rows, width),
    )


def sum_rows(x_ED: Tensor, places: Tensor, offsets: Tensor) -> Tensor:
    """Sums of groups of rows, in fp32 and rounded once: row t of the result is that of x at places[offsets[t]] up to
    places[offsets[t + 1]].

    Args:
        places: int64, of rows of x.
        offsets: int64 [T + 1], ascending from 0 to the number of places.
    """
    for table in (places, offsets):
        assert table.dtype == torch.int64
        assert table.is_contiguous()
    assert int(offsets[0]) == 0
    assert int(offsets[-1]) == places.numel()
    assert bool((offsets.diff() >= 0).all())
    assert 0 <= int(places.min()) <= int(places.max()) < x_ED.shape[0]
    out_TD = x_ED.new_empty(offsets.numel() - 1, x_ED.shape[1])
    _function("sum_rows", _same(x_ED))(
        *(x_ED.data_ptr(), x_ED.stride(0), places.data_ptr(), offsets.data_ptr(), out_TD.data_ptr(), *out_TD.shape)
    )
    return out_TD


def causal_softmax(scores_BQL: Tensor, scale: float) -> None:
    """Put softmax(scores * scale) in the scores' place, fp32; row r sees the keys up to r mod L, others weigh 0."""
    assert scores_BQL.is_contiguous()
    _function("causal_softmax", scores_BQL.dtype)(scores_BQL.data_ptr(), *scores_BQL.shape, scale)


def causal_softmax_backward(gradient_BQL: Tensor, probabilities_BQL: Tensor, scale: float) -> None:
    """Put the gradient of the scores in the place of that of the probabilities, fp32."""
    assert gradient_BQL.shape == probabilities_BQL.shape
    assert gradient_BQL.is_contiguous()
    assert probabilities_BQL.is_contiguous()
    function = _function("causal_softmax_backward", _same(gradient_BQL, probabilities_BQL))
    function(gradient_BQL.data_ptr(), probabilities_BQL.data_ptr(), *gradient_BQL.shape, scale)


BLOCK = 32
"""Channels of products of bf16 blocks have to be a multiple of this."""


class Way(IntFlag):
    """How blocks of bf16 are multiplied: with plain loops (for tests), AVX-512's dot products or AMX's tiles."""

    PLAIN = 1
    DOTS = 2
    TILES = 4


@cache
def ways() -> Way:
    """Those that this processor has; none without the compiled pieces."""
    found = library()
    if found is None:
        return Way(0)
    found.ways.argtypes, found.ways.restype = (), _I
    return Way(found.ways())


def best_way() -> Way | None:
    """The fastest that this processor has; None if that is plain loops."""
    return next((way for way in (Way.TILES, Way.DOTS) if way in ways()), None)


def attention_forward(
    q_HTC: Tensor, k_KTC: Tensor, v_KTC: Tensor, lengths_N: Tensor, *, scale: float, window: int | None, way: Way
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T * scale) v within each document, causal; and log(sum(exp(scores))) of each query.

    Args:
        lengths_N: int64, of documents, at least 1 each, T in all.
        window: positions that a query sees, its own included; None: all.

    Returns:
        [H, T, C], laid out token by token; and fp32 [H, T].
    """
    num_heads, num_tokens, channels = q_HTC.shape
    _are_documents(lengths_N, num_tokens)
    dtype = _same(q_HTC, k_KTC, v_KTC)
    assert k_KTC.shape == v_KTC.shape == (k_KTC.shape[0], num_tokens, channels)
    assert channels % BLOCK == 0
    assert num_heads % k_KTC.shape[0] == 0
    out_HTC = _by_token(q_HTC)
    lse_HT = torch.empty(num_heads, num_tokens, dtype=torch.float32)
    tensors = (q_HTC, k_KTC, v_KTC, out_HTC)
    strides = _strides(tensors)
    _function("attention_forward", dtype)(
        *(tensor.data_ptr() for tensor in tensors),
        *(strides.data_ptr(), lse_HT.data_ptr(), lengths_N.data_ptr(), lengths_N.numel()),
        *(num_heads, k_KTC.shape[0], channels, num_tokens, scale, num_tokens if window is None else window, int(way)),
    )
    return out_HTC, lse_HT


def attention_backward(
    do_HTC: Tensor,
    q_HTC: Tensor,
    k_KTC: Tensor,
    v_KTC: Tensor,
    out_HTC: Tensor,
    lse_HT: Tensor,
    lengths_N: Tensor,
    *,
    scale: float,
    window: int | None,
    way: Way,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, laid out token by token; arguments and results of `attention_forward`."""
    num_heads, num_tokens, channels = q_HTC.shape
    _are_documents(lengths_N, num_tokens)
    assert do_HTC.shape == out_HTC.shape == q_HTC.shape
    assert k_KTC.shape == v_KTC.shape == (k_KTC.shape[0], num_tokens, channels)
    _is_fp32_of(lse_HT, num_heads * num_tokens)
    gradients = (_by_token(q_HTC), _by_token(k_KTC), _by_token(v_KTC))
    tensors = (q_HTC, k_KTC, v_KTC, out_HTC, do_HTC, *gradients)
    strides = _strides(tensors)
    _function("attention_backward", _same(*tensors))(
        *(tensor.data_ptr() for tensor in tensors),
        *(strides.data_ptr(), lse_HT.data_ptr(), lengths_N.data_ptr(), lengths_N.numel()),
        *(num_heads, k_KTC.shape[0], channels, num_tokens, scale, num_tokens if window is None else window, int(way)),
    )
    return gradients


def _by_token(like_HTC: Tensor) -> Tensor:
    """An empty tensor of that shape in which a token's heads lie side by side."""
    return like_HTC.new_empty(like_HTC.shape[1], like_HTC.shape[0], like_HTC.shape[2]).transpose(0, 1)


def _strides(tensors: Sequence[Tensor]) -> Tensor:
    return torch.tensor([stride for tensor in tensors for stride in tensor.stride()[:2]], dtype=torch.int64)


def _are_documents(lengths_N: Tensor, num_tokens: int) -> None:
    assert lengths_N.dtype == torch.int64
    assert lengths_N.is_contiguous()
    assert int(lengths_N.min()) > 0
    assert int(lengths_N.sum()) == num_tokens


def thin_in(
    x_TD: Tensor, spans: Tensor, u_TR: Tensor, tail_TW: Tensor, *, by_rows: bool, way: Way, keeps_alive: Tensor
) -> None:
    """Write x A^T of each slot's rows to `u_TR`, zero behind its rank, and to its columns of `tail_TW`, zero elsewhere.

    Args:
        spans: int64 [spans, 6], which cover all rows: start, stop, address of A, elements between its rows, rank (0: no
            adapter) and first column among those of all slots.
        by_rows: A is [rank, D]; else it is given transposed.
        keeps_alive: what the addresses are of.
    """
    num_rows, depth = x_TD.shape
    _are_spans(spans)
    assert keeps_alive.dtype == x_TD.dtype
    assert depth % BLOCK == 0
    assert u_TR.is_contiguous()
    assert u_TR.shape[0] == tail_TW.shape[0] == num_rows
    assert int(spans[-1, 1]) == num_rows
    assert int(spans[:, 4].max()) <= u_TR.shape[1]
    assert int((spans[:, 4] + spans[:, 5]).max()) <= tail_TW.shape[1]
    _function("thin_in", _same(x_TD, u_TR, tail_TW))(
        *(x_TD.data_ptr(), x_TD.stride(0), num_rows, depth, spans.data_ptr(), spans.shape[0], int(by_rows)),
        *(u_TR.data_ptr(), u_TR.stride(0), tail_TW.data_ptr(), tail_TW.stride(0), tail_TW.shape[1], int(way)),
    )


def thin_out(u_TR: Tensor, x_TD: Tensor, spans: Tensor, scales: Tensor, *, turned: bool, way: Way) -> None:
    """Add scale u^T x of each slot's rows to its fp32 gradient, [rank, D], or [D, rank] where `turned`.

    Args:
        spans: as in `thin_in`; addresses are those of the gradients, which whoever made the table keeps alive.
        scales: fp32, one a span.
    """
    depth = x_TD.shape[1]
    _are_spans(spans)
    _is_fp32_of(scales, spans.shape[0])
    assert depth % BLOCK == 0
    assert u_TR.shape[0] == x_TD.shape[0] == int(spans[-1, 1])
    assert int(spans[:, 4].max()) <= u_TR.shape[1]
    _function("thin_out", _same(u_TR, x_TD))(
        *(u_TR.data_ptr(), u_TR.stride(0), x_TD.data_ptr(), x_TD.stride(0), depth, spans.data_ptr()),
        *(scales.data_ptr(), spans.shape[0], int(turned), int(way)),
    )


def _are_spans(spans: Tensor) -> None:
    assert spans.dtype == torch.int64
    assert spans.is_contiguous()
    assert spans.shape[1] == 6


@cache
def _packed_size(outputs: int, depth: int) -> int:
    found = library()
    assert found is not None
    size = found.packed_size
    size.argtypes, size.restype = (_I, _I), _I
    return size(outputs, depth)


def pack(weight_FD: Tensor) -> Tensor:
    """A matrix in the order in which `product` reads it: panels of output channels, of the weight's own format."""
    outputs, depth = weight_FD.shape
    packed = torch.empty(_packed_size(outputs, depth), dtype=weight_FD.dtype)
    _function("pack", _same(weight_FD))(weight_FD.data_ptr(), weight_FD.stride(0), packed.data_ptr(), outputs, depth)
    return packed


def product(
    x_TD: Tensor,
    packed: Tensor,
    out_TF: Tensor,
    *,
    bias_F: Tensor | None = None,
    blocks: Tensor | None = None,
    adapters: Tensor | None = None,
) -> None:
    """Write x W^T + s (x A^T) B^T to `out_TF`, summed in fp32 and rounded once, and then add the bias.

    Args:
        packed: W, from `pack`.
        blocks: int64 [blocks, 3]: start and stop of rows that belong to a slot, and its index; -1 for no slot. They
            cover all rows.
        adapters: int64 [slots, 3]: addresses of A [rank, D] and of s B^T [rank, F], dense fp32, and the rank; whoever
            made the table keeps these alive.
    """
    rows, depth = x_TD.shape
    assert out_TF.shape[0] == rows
    assert packed.numel() == _packed_size(out_TF.shape[1], depth)
    assert bias_F is None or bias_F.shape == out_TF.shape[1:]
    assert (blocks is None) == (adapters is None)
    for table in (blocks, adapters):
        assert table is None or (table.dtype == torch.int64 and table.is_contiguous() and table.shape[1] == 3)
    function = _function("product", _same(x_TD, packed, out_TF, *([] if bias_F is None else [bias_F])))
    function(
        *(x_TD.data_ptr(), x_TD.stride(0), rows, depth, packed.data_ptr(), out_TF.shape[1]),
        *(None if bias_F is None else bias_F.data_ptr(), out_TF.data_ptr(), out_TF.stride(0)),
        *((None, 0) if blocks is None else (blocks.data_ptr(), blocks.shape[0])),
        None if adapters is None else adapters.data_ptr(),
    )


def attend(
    q_RHC: Tensor,
    k_RKC: Tensor,
    v_RKC: Tensor,
    keys: Tensor,
    values: Tensor,
    cache_rows: Tensor,
    held: Tensor,
    *,
    scale: float,
    window: int | None,
) -> Tensor:
    """Write each row's key and value to the cache, and attend to its own past and itself; returns [R, H, C].

    Args:
        keys: [rows of the cache, K, length, C], dense, and so are `values`.
        cache_rows: int64 [R], each row's place in the cache.
        held: int64 [R], tokens that it held before.
        window: positions that a query sees, its own included; None: all.
    """
    num_rows, num_heads, channels = q_RHC.shape
    _, kv_heads, length, value_channels = values.shape
    dtype = _same(q_RHC, k_RKC, v_RKC, keys, values)
    for dense in (keys, values, cache_rows, held):
        assert dense.is_contiguous()
    out_RHC = torch.empty(num_rows, num_heads, value_channels, dtype=dtype)
    _function("attend", dtype)(
        *(q_RHC.data_ptr(), q_RHC.stride(0), q_RHC.stride(1), k_RKC.data_ptr(), k_RKC.stride(0), k_RKC.stride(1)),
        *(v_RKC.data_ptr(), v_RKC.stride(0), v_RKC.stride(1), keys.data_ptr(), values.data_ptr()),
        *(cache_rows.data_ptr(), held.data_ptr(), out_RHC.data_ptr(), num_rows, kv_heads, num_heads // kv_heads),
        *(channels, value_channels, length, scale, window or 0),
    )
    return out_RHC


def step(
    h_RD: Tensor,
    cos_RC: Tensor,
    sin_RC: Tensor,
    layers: Tensor,
    blocks: Tensor,
    cache_rows: Tensor,
    held: Tensor,
    *,
    heads: int,
    kv_heads: int,
    inner: int,
    length: int,
    eps: tuple[float, float],
    scale: float,
) -> None:
    """Take the residual stream of one token a row through all layers, in place.

    Args:
        layers: int64 [layers, 20]: addresses of the norms' weights before attention and before the MLP; of the packed
            matrices q, k, v, o, gate, up and down; of their adapters' tables as `product` takes them, 0 for none; of
            the layer's keys and values as `attend` takes them; whether it turns queries and keys; and its window, 0 for
            all. Whoever made the table keeps all of these alive.
        blocks: as `product` takes them.
        cache_rows: as `attend` takes them, and so is `held`.
        length: of the cache.
        eps: of the norms before attention and before the MLP.
    """
    num_rows, width = h_RD.shape
    channels = cos_RC.shape[1]
    dtype = _same(h_RD, cos_RC, sin_RC)
    for dense in (h_RD, cos_RC, sin_RC, layers, blocks, cache_rows, held):
        assert dense.is_contiguous()
    assert cos_RC.shape == sin_RC.shape == (num_rows, channels)
    assert layers.shape[1] == 20
    assert layers.dtype == blocks.dtype == cache_rows.dtype == held.dtype == torch.int64
    assert cache_rows.shape == held.shape == (num_rows,)
    assert int(held.max()) < length
    _function("step", dtype)(
        *(layers.data_ptr(), layers.shape[0], num_rows, width, heads, kv_heads, channels, inner, length, *eps, scale),
        *(h_RD.data_ptr(), cos_RC.data_ptr(), sin_RC.data_ptr(), blocks.data_ptr(), blocks.shape[0]),
        *(cache_rows.data_ptr(), held.data_ptr()),
    )


def draw(logits_RV: Tensor, uniforms_R: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """One token of each row, int64 [R], by inversion at `uniforms_R` (fp64, in [0, 1)), and its log-probability.

    Args:
        temperature: that the logits are divided by; 0 takes the likeliest token, whose log-probability is that at 1.
    """
    rows, width = logits_RV.shape
    for dense in (logits_RV, uniforms_R):
        assert dense.is_contiguous()
    assert uniforms_R.dtype == torch.float64
    assert uniforms_R.shape == (rows,)
    tokens_R, logprobs_R = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.float32)
    _function("draw", logits_RV.dtype)(
        *(logits_RV.data_ptr(), uniforms_R.data_ptr(), rows, width, 1.0 / (temperature or 1.0), temperature == 0.0),
        *(tokens_R.data_ptr(), logprobs_R.data_ptr()),
    )
    return tokens_R, logprobs_R


@cache
def _of_updates(name: str) -> Callable[..., float]:
    arguments, result = {
        "squares_fp32": ((_P, _I), ctypes.c_double),
        "adamw_fp32": ((_P, _P, _P, _P, _I, *([_F] * 9)), _I),
        "stochastic_bf16": ((_P, _P, _I, ctypes.c_uint64), None),
        "add_bf16": ((_P, _P, _I), None),
    }[name]
    found = library()
    assert found is not None
    function = getattr(found, name)
    function.argtypes, function.restype = arguments, result
    return function


def updates(*tensors: Tensor) -> bool:
    """Whether the pieces of an update are there and take these: fp32, dense, on the CPU."""
    return all(t.dtype == torch.float32 and t.is_contiguous() and serves(t) for t in tensors)


def squares(x: Tensor) -> float:
    """Sum of squares of dense fp32 numbers, in fp64."""
    return _of_updates("squares_fp32")(x.data_ptr(), x.numel())


def adamw(
    value: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    scale: float,
    decay: float,
    betas: tuple[float, float],
    rate: float,
    correction2: float,
    eps: float,
    bound: float,
) -> bool:
    """AdamW in place, on dense fp32 tensors of one size; whether every value is smaller than a bound afterwards.

    Args:
        scale: factor on the gradient.
        decay: factor on the value.
        rate: learning rate over the first moment's correction.
        correction2: that the root of the second moment is divided by.
        bound: on magnitudes; a NaN is never below it.
    """
    for other in (value, grad, first, second):
        assert other.numel() == value.numel()
        assert other.dtype == torch.float32
        assert other.is_contiguous()
    within = _of_updates("adamw_fp32")(
        *(value.data_ptr(), grad.data_ptr(), first.data_ptr(), second.data_ptr(), value.numel()),
        *(scale, decay, 1 - betas[0], betas[1], 1 - betas[1], rate, correction2, eps, bound),
    )
    return bool(within)


def stochastic_bf16(value: Tensor, seed: int, out: Tensor) -> None:
    """Write dense fp32 numbers to bf16 ones, rounded with random bits of the stream `seed`, modulo 2^64."""
    assert value.dtype == torch.float32
    assert out.dtype == torch.bfloat16
    assert out.shape == value.shape
    assert value.is_contiguous()
    assert out.is_contiguous()
    _of_updates("stochastic_bf16")(value.data_ptr(), out.data_ptr(), value.numel(), seed % 2**64)


def add_bf16(total: Tensor, x: Tensor) -> None:
    """Add dense bf16 numbers to dense fp32 ones."""
    assert total.shape == x.shape
    assert total.dtype == torch.float32
    assert x.dtype == torch.bfloat16
    assert total.is_contiguous()
    assert x.is_contiguous()
    _of_updates("add_bf16")(total.data_ptr(), x.data_ptr(), x.numel())
