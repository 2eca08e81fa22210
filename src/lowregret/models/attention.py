"""Packed causal attention: each document of a packed row attends to itself only.

Registered with transformers under the name `lowregret_packed`. What a forward brings as `packing` does the attending:
a packed row here, a step of many completions in `kv_cache`. A forward that brings none (a decoding step with
transformers' own cache) falls through to its sdpa attention. `packed_attention_reference` is the same thing with one
softmax a document; tests hold the two equal.
Suffixes: N documents, H heads, K key-value heads, T packed tokens, L tokens of one document, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lowregret.errors import ModelError
from lowregret.kernels.products import widens
from lowregret.models import dense_attention, tiled_attention, varlen_attention

NAME = "lowregret_packed"


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a layer's attention is besides its tensors.

    >>> Head(layer=0, scaling=0.125).window is None
    True
    """

    layer: int
    """Index of the layer."""
    scaling: float
    """Of the scores."""
    window: int | None = None
    """Positions that a query sees, its own included. None: all before it."""
    softcap: float | None = None
    """Scores are squeezed into +-softcap by tanh. None: they are not."""


@runtime_checkable
class Attending(Protocol):
    """Attends in one forward: who sees whom, and where keys and values go."""

    def attend(
        self, q: Float[Tensor, "H T C"], k: Float[Tensor, "K T C"], v: Float[Tensor, "K T C"], head: Head, /
    ) -> Float[Tensor, "H T C"]: ...


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Document lengths of a packed row; they sum to T.

    >>> Packing(lengths=(3, 2)).offsets
    (0, 3)
    """

    lengths: tuple[int, ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each document starts."""
        starts, at = [], 0
        for length in self.lengths:
            starts.append(at)
            at += length
        return tuple(starts)

    def attend(self, q_HTC: Tensor, k_KTC: Tensor, v_KTC: Tensor, head: Head) -> Tensor:
        """Each document attends to itself."""
        if head.softcap is not None:
            return packed_attention_reference(
                q_HTC, k_KTC, v_KTC, self.lengths, head.scaling, head.window, head.softcap
            )
        return packed_attention(q_HTC, k_KTC, v_KTC, self, head.scaling, head.window)

    def layout_on(self, device: torch.device) -> Layout:
        """How the fused kernel takes the documents; the same for every layer, so made and sent once a forward."""
        if device not in self._layouts:
            self._layouts[device] = Layout.of(self.lengths).to(device)
        return self._layouts[device]

    def boundaries(self, device: torch.device) -> Tensor:
        """Where documents begin, and T behind the last: int32 [N + 1] on a device, sent there once a forward."""
        if device not in self._boundaries:
            self._boundaries[device] = torch.tensor([*self.offsets, sum(self.lengths)], dtype=torch.int32).to(device)
        return self._boundaries[device]

    @cached_property
    def on_cpu(self) -> Tensor:
        """The lengths as int64 [N]."""
        return torch.tensor(self.lengths, dtype=torch.int64)

    @cached_property
    def _layouts(self) -> dict[torch.device, Layout]:
        return {}

    @cached_property
    def _boundaries(self) -> dict[torch.device, Tensor]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Documents of about one length together, as indices: two gathers a tensor, however many documents there are.

    >>> layout = Layout.of((3, 8, 2))
    >>> layout.sizes, layout.back.tolist()[:4]
    (((3, 8),), [0, 1, 2, 8])
    """

    sizes: tuple[tuple[int, int], ...]
    """Of each group: documents N, and the rounded length L that they are filled up to."""
    tokens: tuple[Tensor, ...]
    """Of each group: the packed token at each place, int64 [N L]; behind a document's end its last token again."""
    back: Tensor
    """Where each packed token stands in the groups one after another, int64 [T]."""

    def to(self, device: torch.device) -> Layout:
        """The same on another device."""
        return Layout(
            sizes=self.sizes, tokens=tuple(part.to(device) for part in self.tokens), back=self.back.to(device)
        )

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Layout:
        """The layout of documents of these lengths."""
        of_document = np.asarray(lengths)
        starts = np.cumsum(of_document) - of_document
        rounded = np.array([_rounded(length) for length in lengths])
        back = np.empty(int(of_document.sum()), dtype=np.int64)
        sizes: list[tuple[int, int]] = []
        tokens: list[Tensor] = []
        before = 0
        for length in dict.fromkeys(rounded.tolist()):
            chosen = np.flatnonzero(rounded == length)
            places = np.minimum(np.arange(length)[None], of_document[chosen, None] - 1)
            own = starts[chosen, None] + places
            real = np.arange(length)[None] < of_document[chosen, None]
            back[own[real]] = before + np.flatnonzero(real.ravel())
            sizes.append((len(chosen), length))
            tokens.append(torch.from_numpy(own.ravel()))
            before += own.size
        return cls(sizes=tuple(sizes), tokens=tuple(tokens), back=torch.from_numpy(back))


def packed_attention_reference(
    q_HTC: Float[Tensor, "H T C"],
    k_KTC: Float[Tensor, "K T C"],
    v_KTC: Float[Tensor, "K T C"],
    lengths: Sequence[int],
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "H T C"]:
    """softmax(q k^T * scaling) v within each document, causal, with an optional sliding window and soft cap."""
    repeat = q_HTC.shape[0] // k_KTC.shape[0]
    outputs: list[Tensor] = []
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        start += length
        q, k, v = q_HTC[:, rows], k_KTC[:, rows], v_KTC[:, rows]
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        scores = (q @ k.transpose(1, 2)).to(torch.promote_types(q.dtype, torch.float32)) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~allowed(length, window, q.device), float("-inf"))
        outputs.append(torch.softmax(scores, -1).to(v.dtype) @ v)
    return torch.cat(outputs, dim=1)


def allowed(length: int, window: int | None, device: torch.device) -> Tensor:
    """Boolean [L, L]: may query i see key j? j <= i, and within the last `window` positions where one is set."""
    positions = torch.arange(length, device=device)
    behind = positions[:, None] - positions[None, :]
    mask = behind >= 0
    return mask if window is None else mask & (behind < window)


def packed_attention(
    q_HTC: Float[Tensor, "H T C"],
    k_KTC: Float[Tensor, "K T C"],
    v_KTC: Float[Tensor, "K T C"],
    packing: Packing,
    scaling: float,
    window: int | None = None,
) -> Float[Tensor, "H T C"]:
    """The reference by fused kernels: no score matrix is kept.

    On a GPU in bf16 that is flash attention over the packed row (`varlen_attention`), on a CPU that multiplies bf16 our
    own kernel for it (`tiled_attention`). Elsewhere documents of about one
    length go together, filled up to a rounded length (`_rounded`) with their last token: what stands behind a
    document's end is seen by none of its tokens.
    """
    lengths = packing.lengths
    if varlen_attention.serves(q_HTC, v_KTC):
        boundaries = packing.boundaries(q_HTC.device)
        return varlen_attention.varlen_attention(q_HTC, k_KTC, v_KTC, boundaries, max(lengths), scaling, window)
    if tiled_attention.serves(q_HTC, v_KTC):
        return tiled_attention.tiled_attention(q_HTC, k_KTC, v_KTC, packing.on_cpu, scaling, window)
    if len(set(lengths)) == 1 and lengths[0] == _rounded(lengths[0]):
        q, k, v = (t.unflatten(1, (len(lengths), -1)).transpose(0, 1) for t in (q_HTC, k_KTC, v_KTC))
        return _fused(q, k, v, scaling, window).transpose(0, 1).flatten(1, 2)
    layout = packing.layout_on(q_HTC.device)
    outputs: list[Tensor] = []
    for (number, length), tokens in zip(layout.sizes, layout.tokens, strict=True):
        q, k, v = (
            t.index_select(1, tokens).unflatten(1, (number, length)).transpose(0, 1) for t in (q_HTC, k_KTC, v_KTC)
        )
        outputs.append(_fused(q, k, v, scaling, window).transpose(0, 1).flatten(1, 2))
    return torch.cat(outputs, dim=1).index_select(1, layout.back)


def _rounded(length: int) -> int:
    """A document's length for the kernel: every new one costs primitives that stay in memory.

    On SmolLM2-135M a micro-batch of 16 documents of unseen lengths left about 60 MiB behind (`docs/log.md`).

    >>> _rounded(12), _rounded(64), _rounded(65)
    (16, 64, 96)
    """
    multiple = 8 if length <= 64 else 32
    return -(-length // multiple) * multiple


def _fused(q_NHLC: Tensor, k_NKLC: Tensor, v_NKLC: Tensor, scaling: float, window: int | None) -> Tensor:
    """Documents of one length, [N, H, L, C]; bf16 in fp32 where the processor does not multiply it.

    There torch's kernel took 14 times as long in bf16, and 40 % of a step (`docs/log.md`).
    """
    if widens(q_NHLC):
        return _fused(q_NHLC.float(), k_NKLC.float(), v_NKLC.float(), scaling, window).to(q_NHLC.dtype)
    length = q_NHLC.shape[2]
    masked = window is not None and window < length
    if not masked and dense_attention.serves(q_NHLC, v_NKLC):
        return dense_attention.dense_attention(q_NHLC, k_NKLC, v_NKLC, scaling)
    return torch.nn.functional.scaled_dot_product_attention(
        q_NHLC,
        k_NKLC,
        v_NKLC,
        attn_mask=allowed(length, window, q_NHLC.device) if masked else None,
        is_causal=not masked,
        scale=scaling,
        enable_gqa=q_NHLC.shape[1] != k_NKLC.shape[1],
    )


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, T, C], key and value [1, K, T, C]; returns [1, T, H, C]."""
    attending = cast("Attending | None", kwargs.pop("packing", None))
    if kwargs.get("s_aux") is not None:
        raise ModelError("this model's attention has sinks (s_aux), which packed attention does not support yet")
    if attending is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    head = Head(
        layer=cast(Any, module).layer_idx,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
    )
    output = attending.attend(query[0], key[0], value[0], head)
    return output.transpose(0, 1)[None], None


def register() -> str:
    """Make the attention known to transformers; returns its name for `attn_implementation`.

    Masks are made for decoding steps only: a packed forward passes a 4-D placeholder, which transformers hands through.
    """
    ALL_ATTENTION_FUNCTIONS.register(NAME, _forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    return NAME
