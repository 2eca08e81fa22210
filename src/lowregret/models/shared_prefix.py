"""Packed attention of documents that branch: several continuations of one prefix, which everything else computes once.

The completions of a group continue one prompt. For attention alone each of them gets the prompt's keys, values and
queries before its own ("unfolded"), as a document of its own; projections, MLPs and their backward see a prompt's
tokens once. What a prompt's keys and values are told by its continuations is summed in fp32; the sum is rounded once.
Suffixes: H heads, K key-value heads, T packed tokens, E unfolded tokens, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowregret.kernels import native
from lowregret.models.attention import Head, Packing


@dataclass(frozen=True, kw_only=True)
class SharedPrefixes:
    """Segments of a packed row, some of which branch.

    >>> shared = SharedPrefixes(lengths=(2, 5), branches={1: (1, 2)})
    >>> shared.unfolded.lengths, shared.places_on(torch.device("cpu")).unfolded.tolist()
    ((2, 3, 4), [0, 1, 2, 3, 4, 2, 3, 5, 6])
    """

    lengths: tuple[int, ...]
    """Tokens of each segment; they sum to T."""
    branches: Mapping[int, tuple[int, ...]]
    """By segment, the lengths of the branches at its end; what stands before them is their prefix."""

    def attend(
        self, q_HTC: Float[Tensor, "H T C"], k_KTC: Float[Tensor, "K T C"], v_KTC: Float[Tensor, "K T C"], head: Head
    ) -> Float[Tensor, "H T C"]:
        """Each document attends to itself, and each branch to its prefix and itself."""
        places = self.places_on(q_HTC.device)
        q_HEC, k_KEC, v_KEC = (cast(Tensor, _Unfold.apply(x, places)) for x in (q_HTC, k_KTC, v_KTC))
        return cast(Tensor, _Fold.apply(self.unfolded.attend(q_HEC, k_KEC, v_KEC, head), places))

    def places_on(self, device: torch.device) -> Places:
        """Which tokens stand where; the same for every layer, so made and sent once a forward."""
        if device not in self._places:
            self._places[device] = Places.of([_index(*document) for document in self._documents], device)
        return self._places[device]

    @cached_property
    def unfolded(self) -> Packing:
        """Every branch with its prefix before it as one document."""
        return Packing(lengths=tuple(prefix + branch for _, prefix, _, branch in self._documents))

    @cached_property
    def _documents(self) -> list[tuple[int, int, int, int]]:
        """Start and length of the prefix, and of the branch behind it, of each unfolded document."""
        found: list[tuple[int, int, int, int]] = []
        start = 0
        for segment, length in enumerate(self.lengths):
            branches = self.branches.get(segment, ())
            prefix = length - sum(branches)
            at = start + prefix
            for branch in branches or (0,):
                found.append((start, prefix, at, branch))
                at += branch
            start += length
        return found

    @cached_property
    def _places(self) -> dict[torch.device, Places]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Places:
    """How packed and unfolded tokens go into each other.

    >>> places = Places.of([np.array([0, 1]), np.array([0, 2])], torch.device("cpu"))
    >>> places.back.tolist(), places.offsets.tolist(), places.copies.tolist()
    ([0, 1, 3], [0, 2, 3, 4], [0, 2, 1, 3])
    """

    unfolded: Int64[Tensor, " E"]
    """The packed token at each unfolded place."""
    back: Int64[Tensor, " T"]
    """The first unfolded place of each packed token."""
    copies: Int64[Tensor, " E"]
    """All unfolded places, those of a packed token together."""
    offsets: Int64[Tensor, " T1"]
    """Where those of each packed token begin, and E; T + 1 of them."""
    first: Int64[Tensor, " E"]
    """The packed token at each unfolded place that is its first, and T at the others."""

    @classmethod
    def of(cls, documents: list[np.ndarray], device: torch.device) -> Places:
        """From the packed tokens of each unfolded document."""
        unfolded = np.concatenate(documents)
        copies = np.argsort(unfolded, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(unfolded))])
        back = copies[offsets[:-1]]
        first = np.full(len(unfolded), len(back))
        first[back] = np.arange(len(back))
        tables = {"unfolded": unfolded, "back": back, "copies": copies, "offsets": offsets, "first": first}
        return cls(**{name: torch.from_numpy(table.astype(np.int64)).to(device) for name, table in tables.items()})


def _index(start: int, prefix: int, at: int, branch: int) -> np.ndarray:
    return np.concatenate([np.arange(start, start + prefix), np.arange(at, at + branch)])


class _Unfold(torch.autograd.Function):
    """x at every place where its token stands; backwards the sum over these."""

    @staticmethod
    def forward(ctx: Any, x_HTC: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return _rows(x_HTC, places.unfolded)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # by the decorator's type
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None]:
        places: Places = ctx.places
        grad_EHC = grad_outputs[0].transpose(0, 1)
        grad_ED = grad_EHC.reshape(grad_EHC.shape[0], -1).contiguous()
        if native.serves(grad_ED):
            sum_TD = native.sum_rows(grad_ED, places.copies, places.offsets)
        else:
            wide = torch.promote_types(grad_ED.dtype, torch.float32)
            sum_TD = grad_ED.new_zeros(len(places.back), grad_ED.shape[1], dtype=wide)
            sum_TD = sum_TD.index_add_(0, places.unfolded, grad_ED.to(wide)).to(grad_ED.dtype)
        return sum_TD.unflatten(1, grad_EHC.shape[1:]).transpose(0, 1), None


class _Fold(torch.autograd.Function):
    """x at the first place of each token; nobody asks what stands at the others."""

    @staticmethod
    def forward(ctx: Any, x_HEC: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return _rows(x_HEC, places.back)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # by the decorator's type
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None]:
        grad_THC = grad_outputs[0].transpose(0, 1)
        with_nothing = torch.cat([grad_THC, grad_THC.new_zeros(1, *grad_THC.shape[1:])])
        return with_nothing.index_select(0, ctx.places.first).transpose(0, 1), None


def _rows(x_HTC: Tensor, index: Tensor) -> Tensor:
    """Some tokens; the heads of each lie side by side."""
    return x_HTC.transpose(0, 1).index_select(0, index).transpose(0, 1)
