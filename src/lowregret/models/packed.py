"""Matrices packed for products of few rows, as a decoding step makes them (`CausalLM.decoding`).

A step of sixteen rows reads every weight and computes little with each: what counts is that weights come in the order
and in the format in which they lie in memory. So each matrix is copied once into panels. Base and adapters are summed
in one fp32 accumulator, as in training, and rounded once. The copies hold as much memory as the weights.
`packed_product_reference` is the formula; tests hold both equal, and a decoding model equal to the model.
Suffixes: T rows, D in, F out, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowregret.adapters.layer import AdaptedLinear
from lowregret.adapters.routing import Span
from lowregret.kernels import native
from lowregret.kernels.products import widens

Site = nn.Linear | AdaptedLinear

MOST_ROWS = 256
"""Rows up to which a packed matrix is used."""
MOST_ROWS_BF16 = 32
"""The same in bf16 where the processor multiplies it and the packed product knows no way to have it do so: there more
rows are faster in torch's products."""
BLOCK_ROWS = 4
"""Rows of a slot that one thread takes at a time."""


class PackedSites:
    """Some matrices of a model, packed, and the adapters of its slots as they are now."""

    def __init__(self, sites: Iterable[Site]) -> None:
        """
        Args:
            sites: matrices of one format, which `native.serves`; weights or adapters that change later are not seen.
        """
        everything = list(sites)
        adapted = [site for site in everything if isinstance(site, AdaptedLinear)]
        slots = dict.fromkeys(slot for site in adapted for slot in site.columns)
        self._index = {slot: index for index, slot in enumerate(slots)}
        self._sites = {site: _Packed(site, self._index) for site in everything}
        self._cell = adapted[0].cell if adapted else None
        self._spans: tuple[Span, ...] = ()
        self._blocks = _blocks((), self._index)

    @staticmethod
    def fits(sites: Iterable[Site]) -> bool:
        """Whether the compiled pieces can multiply these: on the CPU, no arithmetic that rounds in between."""
        return all(
            native.serves(site.weight)
            and (site.weight.dtype != torch.bfloat16 or not isinstance(site, AdaptedLinear) or site.is_faithful)
            for site in sites
        )

    def product(self, site: Site, x_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T F"] | None:
        """The output with bias; None where there are too many rows, or the site is none of these."""
        packed = self._sites.get(site)
        if packed is None or not self.takes(x_TD):
            return None
        return packed.product(x_TD, self.blocks(x_TD.shape[0]))

    def takes(self, x_TD: Tensor) -> bool:
        """Whether these are few enough rows."""
        slow = x_TD.dtype == torch.bfloat16 and not widens(x_TD) and native.best_way() is None
        return x_TD.shape[0] <= (MOST_ROWS_BF16 if slow else MOST_ROWS)

    def blocks(self, num_rows: int) -> Tensor:
        """Which rows belong to which slot, as `native.product` takes it: int64 [blocks, 3]."""
        if self._cell is not None:
            spans = self._cell.current().spans_of(num_rows)
            if spans is not self._spans:
                self._spans, self._blocks = spans, _blocks(spans, self._index)
        return self._blocks

    def addresses(self, site: Site) -> tuple[int, int]:
        """Of a packed matrix, and of its adapters' table (0: none); they stay while this object does."""
        return self._sites[site].addresses


class _Packed:
    def __init__(self, site: Site, index: Mapping[str, int]) -> None:
        self._outputs = site.weight.shape[0]
        self._packed = native.pack(site.weight.detach())
        self._bias = None if site.bias is None else site.bias.detach()
        self._matrices: list[tuple[Tensor, Tensor]] = []
        rows = [(0, 0, 0)] * len(index)
        for slot, at in site.columns.items() if isinstance(site, AdaptedLinear) else ():
            if at.silent:
                continue
            working = cast(AdaptedLinear, site).working
            down_RD = working.down[at.start : at.stop].float().clone()
            up_RF = working.up[:, at.start : at.stop].T.float().contiguous().clone()
            self._matrices.append((down_RD, up_RF))
            rows[index[slot]] = (down_RD.data_ptr(), up_RF.data_ptr(), at.rank)
        self._adapters = torch.tensor(rows, dtype=torch.int64) if self._matrices else None

    @property
    def addresses(self) -> tuple[int, int]:
        return self._packed.data_ptr(), 0 if self._adapters is None else self._adapters.data_ptr()

    def product(self, x_TD: Tensor, blocks: Tensor) -> Tensor:
        out_TF = x_TD.new_empty(x_TD.shape[0], self._outputs)
        given = None if self._adapters is None else blocks
        native.product(x_TD, self._packed, out_TF, bias_F=self._bias, blocks=given, adapters=self._adapters)
        return out_TF


def _blocks(spans: Iterable[Span], index: Mapping[str, int]) -> Tensor:
    """Start, stop and slot of at most `BLOCK_ROWS` rows each, as `native.product` takes them."""
    rows = [
        (start, min(start + BLOCK_ROWS, span.stop), index.get(span.slot, -1) if span.slot is not None else -1)
        for span in spans
        for start in range(span.start, span.stop, BLOCK_ROWS)
    ]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


def packed_product_reference(
    x_TD: Float[Tensor, "T D"],
    weight_FD: Float[Tensor, "F D"],
    adapters: Mapping[str, tuple[Tensor, Tensor]],
    spans: Iterable[Span],
    bias_F: Float[Tensor, " F"] | None = None,
) -> Float[Tensor, "T F"]:
    """The formula: `adapters` maps a slot to (A [R, D], s B [F, R])."""
    sum_TF = x_TD.float() @ weight_FD.float().T
    for span in spans:
        if span.slot is not None and span.slot in adapters:
            a_RD, b_FR = adapters[span.slot]
            rows = slice(span.start, span.stop)
            sum_TF[rows] += x_TD[rows].float() @ a_RD.float().T @ b_FR.float().T
    y_TF = sum_TF.to(x_TD.dtype)
    return y_TF if bias_F is None else y_TF + bias_F
