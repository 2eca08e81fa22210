"""Keys and values of many completions, and the attention of a step that adds one token to each.

A prompt is read once, packed (`Recording`), and its keys and values are copied to every row that continues it. A row is
filled from position 0, so that rows of unequal length stand beside each other without a shift; what lies behind a
row's end is masked, and zero when a row begins or moves: a mask can't hide the NaN of a slot that held the row before.
Suffixes: R rows (completions), H heads, K key-value heads, G queries of a key-value head, C channels, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowregret.kernels import native
from lowregret.models.attention import Head, Packing

STEADY = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels of a decoding step on a GPU."""
LENGTH_MULTIPLE = 32
"""Positions looked at are rounded up to this: a new length every token would cost a new primitive on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A packed forward that keeps its keys and values.

    >>> Recording(packing=Packing(lengths=(3,))).keys
    {}
    """

    packing: Packing
    keys: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """By layer, [K, T, C]."""
    values: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def attend(self, q_HTC: Tensor, k_KTC: Tensor, v_KTC: Tensor, head: Head) -> Tensor:
        """As the packing does."""
        self.keys[head.layer], self.values[head.layer] = k_KTC, v_KTC
        return self.packing.attend(q_HTC, k_KTC, v_KTC, head)


class KVCache:
    """Room for `rows` completions of up to `length` tokens, prompt included."""

    def __init__(self, *, rows: int, length: int) -> None:
        self.rows = rows
        self.length = -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def seen(self, held: int, multiple: int = LENGTH_MULTIPLE) -> int:
        """Positions looked at in a step whose longest row held so many tokens before it."""
        assert held < self.length
        return min(self.length, -(-(held + 1) // multiple) * multiple)

    def fill(self, rows: slice, recording: Recording, document: int) -> None:
        """Copy one document of a recording to the beginning of some rows."""
        start = recording.packing.offsets[document]
        length = recording.packing.lengths[document]
        for layer, k_KTC in recording.keys.items():
            v_KTC = recording.values[layer]
            for cached_RKLC, new_KTC in zip(self.of(layer, k_KTC, v_KTC), (k_KTC, v_KTC), strict=True):
                cached_RKLC[rows, :, :length] = new_KTC[:, start : start + length]
                cached_RKLC[rows, :, length:] = 0

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row's first `length` positions to another row, and zero what lies behind them there."""
        for cached in (self._keys, self._values):
            for rows_RKLC in cached.values():
                rows_RKLC[target, :, :length] = rows_RKLC[source, :, :length]
                rows_RKLC[target, :, length:] = 0

    def of(self, layer: int, k_KTC: Tensor, v_KTC: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, [rows, K, length, C]; made at its first use, when their shapes are known."""
        if layer not in self._keys:
            for cached, like_KTC in ((self._keys, k_KTC), (self._values, v_KTC)):
                num_heads, _, channels = like_KTC.shape
                cached[layer] = like_KTC.new_zeros(self.rows, num_heads, self.length, channels)
        return self._keys[layer], self._values[layer]


class DecodingStep:
    """Each row gets one token; attends to its own past in the cache."""

    def __init__(self, cache: KVCache, *, rows: Tensor, positions: Tensor, seen: int, in_order: bool) -> None:
        """
        Args:
            rows: cache row of each token, a permutation of 0..R-1, int64.
            positions: tokens that each of these rows held before, int64.
            seen: cached positions looked at (`KVCache.seen`).
            in_order: the rows are 0..R-1 as they stand; False is right for any.
        """
        self.cache = cache
        self.rows = rows
        """Cache row of each token, int64 [R]."""
        self.positions = positions
        """Position of each token, int64 [R]."""
        self._in_order = in_order
        self._back = torch.argsort(rows)
        self._seen = seen
        self._masks: dict[int | None, Tensor] = {}

    @classmethod
    def of(cls, cache: KVCache, *, rows: Sequence[int], held: Sequence[int], device: torch.device) -> DecodingStep:
        """The step of these rows, which held so many tokens before."""
        assert max(rows) < cache.rows
        return cls(
            cache,
            rows=torch.tensor(rows, device=device),
            positions=torch.tensor(held, device=device),
            seen=cache.seen(max(held)),
            in_order=list(rows) == list(range(len(rows))),
        )

    def attend(self, q_HRC: Tensor, k_KRC: Tensor, v_KRC: Tensor, head: Head) -> Tensor:
        """Write the tokens' keys and values, then attend to all positions of each row up to its own."""
        keys, values = self.cache.of(head.layer, k_KRC, v_KRC)
        if native.serves(q_HRC) and head.softcap is None:
            rows = (q_HRC.transpose(0, 1), k_KRC.transpose(0, 1), v_KRC.transpose(0, 1))
            output_RHC = native.attend(
                *rows, keys, values, self.rows, self.positions, scale=head.scaling, window=head.window
            )
            return output_RHC.transpose(0, 1)
        keys[self.rows, :, self.positions] = k_KRC.transpose(0, 1)
        values[self.rows, :, self.positions] = v_KRC.transpose(0, 1)
        num_rows, num_heads = q_HRC.shape[1], k_KRC.shape[0]
        # The queries that share a key-value head stand beside each other, as if they were several positions of one.
        q_RKGC = q_HRC.unflatten(0, (num_heads, -1)).permute(2, 0, 1, 3)
        if not self._in_order:
            q_RKGC = q_RKGC[self._back]
        k_RKLC, v_RKLC = keys[:num_rows, :, : self._seen], values[:num_rows, :, : self._seen]
        output_RKGC = self._attend(q_RKGC, k_RKLC, v_RKLC, head)
        if not self._in_order:
            output_RKGC = output_RKGC[self.rows]
        return output_RKGC.permute(1, 2, 0, 3).flatten(0, 1)

    def _attend(self, q_RKGC: Tensor, k_RKLC: Tensor, v_RKLC: Tensor, head: Head) -> Tensor:
        mask = self._mask(head.window, q_RKGC.dtype)
        if head.softcap is None:
            # cuDNN, which torch prefers on new cards, plans for every new length, which takes longer than a step.
            with sdpa_kernel(STEADY) if q_RKGC.device.type == "cuda" else nullcontext():
                return torch.nn.functional.scaled_dot_product_attention(
                    q_RKGC, k_RKLC, v_RKLC, attn_mask=mask, scale=head.scaling
                )
        scores = (q_RKGC @ k_RKLC.mT).to(torch.promote_types(q_RKGC.dtype, torch.float32)) * head.scaling
        scores = head.softcap * torch.tanh(scores / head.softcap) + mask
        return torch.softmax(scores, -1).to(v_RKLC.dtype) @ v_RKLC

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """0 where a row may look and -inf elsewhere, [R, 1, 1, L] by cache row."""
        if window not in self._masks:
            own = self.positions[self._back][:, None]
            at = torch.arange(self._seen, device=own.device)[None]
            seen = at <= own if window is None else (at <= own) & (at > own - window)
            mask = torch.zeros(seen.shape, dtype=dtype, device=own.device).masked_fill_(~seen, float("-inf"))
            self._masks[window] = mask[:, None, None]
        return self._masks[window]
