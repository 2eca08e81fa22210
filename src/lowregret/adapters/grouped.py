"""The bank's kernel: one linear layer with the adapters of many slots, in one accumulator.

The usual way, `bf16(W x) + bf16(s B A x)`, rounds the base first; what the adapter adds below half a unit in the last
place of that rounded number is lost. Here base and delta are summed in the matrix product's own fp32 accumulator and
rounded once. There are two layouts of the same sums:

*folded*, for banks with few adapter columns. A site keeps `M = [[W, sB], [A, 0]]`, (F + R) x (D + R); with u = x A^T
the forward is `y = [x, u] [W, sB]^T` and, with du = dy sB, the gradient of the input is `dx = [dy, du] [W; A]`: two
products over views of one matrix, all slots at once, a row being zero in the columns of other slots.

*separate*, for banks with many. Each slot's rows meet `[W, sB_k]` and `[W; A_k]`, put together for the moment; nothing
is multiplied by other slots' zeros, at the price of one product a slot and a copy of W.

`grouped_linear_reference` is the formula as a loop; tests hold both layouts equal to it in fp64.
Suffixes: T rows, D in, F out, R adapter columns (sum of ranks, padded where folded).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lowregret.adapters.routing import Span

COLUMN_MULTIPLE = 16
"""Adapter columns are padded to this: 576 + 73 columns ran 35 % slower than 576, 576 + 80 lost 11 % less
(benchmarks/pieces.py)."""

FOLDED_SHARE = 0.25
"""Adapter columns, as a share of d_in, up to which a site is folded. Folded, every row pays for every column; separate,
each slot pays a copy of W, worth about a quarter of a product of 300 rows."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The adapter columns of one slot in a folded matrix: `start` to `start + rank`.

    >>> Columns(start=16, rank=8, scaling=4.0).stop
    24
    """

    start: int
    rank: int
    scaling: float
    """alpha / rank, already multiplied into the folded B."""
    silent: bool = False
    """B is zero. Where separate, such rows go through the base product itself, so that they are exactly the base."""

    @property
    def stop(self) -> int:
        return self.start + self.rank


def padded_columns(num_columns: int) -> int:
    """Adapter columns rounded up to a multiple that the matrix product likes."""
    return -(-num_columns // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def fits_folded(num_columns: int, d_in: int) -> bool:
    """Whether a site with that many adapter columns is better folded: each row pays for all of them."""
    return num_columns <= FOLDED_SHARE * d_in


def grouped_linear(
    x_TD: Float[Tensor, "T D"],
    folded: Float[Tensor, "FR DR"],
    spans: tuple[Span, ...],
    columns: Mapping[str, Columns],
    d_out: int,
) -> tuple[Float[Tensor, "T F"], tuple[Tensor, ...]]:
    """y = x W^T + s (x A^T) B^T for every slot's rows, folded.

    Args:
        x_TD: input rows, those of a slot adjacent as `spans` says.
        folded: M of the module docstring.
        spans: rows by slot; a slot without columns here (or None) gets the base.
        columns: adapter columns by slot.
        d_out: F.

    Returns:
        y of shape [T, F], and for each span u = x A^T of shape [rows, rank], kept for the backward.
    """
    num_rows, d_in = x_TD.shape
    xu = x_TD.new_empty(num_rows, folded.shape[1])
    xu[:, :d_in] = x_TD
    xu[:, d_in:].zero_()
    us: list[Tensor] = []
    for span in spans:
        at = columns.get(span.slot) if span.slot is not None else None
        if at is None:
            us.append(x_TD.new_empty(0))
            continue
        rows = slice(span.start, span.stop)
        us.append(x_TD[rows] @ folded[d_out + at.start : d_out + at.stop, :d_in].T)
        xu[rows, d_in + at.start : d_in + at.stop] = us[-1]
    return xu @ folded[:d_out].T, tuple(us)


def grouped_linear_backward(
    dy_TF: Float[Tensor, "T F"],
    folded: Float[Tensor, "FR DR"],
    spans: tuple[Span, ...],
    columns: Mapping[str, Columns],
    d_in: int,
) -> tuple[Float[Tensor, "T D"], tuple[Tensor, ...]]:
    """Gradient of the input, the adapter part in the same accumulator as the base part; folded.

    Returns:
        dx of shape [T, D], and for each span du = dy sB of shape [rows, rank].
    """
    num_rows, d_out = dy_TF.shape
    dyu = dy_TF.new_empty(num_rows, folded.shape[0])
    dyu[:, :d_out] = dy_TF
    dyu[:, d_out:].zero_()
    dus: list[Tensor] = []
    for span in spans:
        at = columns.get(span.slot) if span.slot is not None else None
        if at is None:
            dus.append(dy_TF.new_empty(0))
            continue
        rows = slice(span.start, span.stop)
        dus.append(dy_TF[rows] @ folded[:d_out, d_in + at.start : d_in + at.stop])
        dyu[rows, d_out + at.start : d_out + at.stop] = dus[-1]
    return dyu @ folded[:, :d_in], tuple(dus)


def separate_linear(
    x_TD: Float[Tensor, "T D"],
    weight_FD: Float[Tensor, "F D"],
    down_RD: Float[Tensor, "R D"],
    up_FR: Float[Tensor, "F R"],
    spans: tuple[Span, ...],
    columns: Mapping[str, Columns],
) -> tuple[Float[Tensor, "T F"], tuple[Tensor, ...]]:
    """`grouped_linear` with the adapters apart: A in `down_RD`, s B in `up_FR`, each slot in its own columns."""
    outputs: list[Tensor] = []
    us: list[Tensor] = []
    base_from = 0  # rows from here to the span under way need the base only, in one product
    for span in spans:
        x = x_TD[span.start : span.stop]
        at = columns.get(span.slot) if span.slot is not None else None
        us.append(x_TD.new_empty(0) if at is None else x @ down_RD[at.start : at.stop].T)
        if at is None or at.silent:
            continue
        if base_from < span.start:
            outputs.append(x_TD[base_from : span.start] @ weight_FD.T)
        outputs.append(torch.cat([x, us[-1]], 1) @ torch.cat([weight_FD, up_FR[:, at.start : at.stop]], 1).T)
        base_from = span.stop
    if base_from < x_TD.shape[0]:
        outputs.append(x_TD[base_from:] @ weight_FD.T)
    return torch.cat(outputs), tuple(us)


def separate_linear_backward(
    dy_TF: Float[Tensor, "T F"],
    weight_FD: Float[Tensor, "F D"],
    down_RD: Float[Tensor, "R D"],
    up_FR: Float[Tensor, "F R"],
    spans: tuple[Span, ...],
    columns: Mapping[str, Columns],
) -> tuple[Float[Tensor, "T D"], tuple[Tensor, ...]]:
    """`grouped_linear_backward` with the adapters apart."""
    outputs: list[Tensor] = []
    dus: list[Tensor] = []
    for span in spans:
        dy = dy_TF[span.start : span.stop]
        at = columns.get(span.slot) if span.slot is not None else None
        if at is None:
            dus.append(dy_TF.new_empty(0))
            outputs.append(dy @ weight_FD)
            continue
        dus.append(dy @ up_FR[:, at.start : at.stop])
        outputs.append(torch.cat([dy, dus[-1]], 1) @ torch.cat([weight_FD, down_RD[at.start : at.stop]], 0))
    return torch.cat(outputs), tuple(dus)


def accumulate_adapter_gradients(
    x_TD: Float[Tensor, "T D"],
    dy_TF: Float[Tensor, "T F"],
    us: Sequence[Tensor],
    dus: Sequence[Tensor],
    spans: tuple[Span, ...],
    columns: Mapping[str, Columns],
    gradients: Mapping[str, tuple[Tensor, Tensor]],
) -> None:
    """Add dA = du^T x and dB = s dy^T u of each slot's own rows into its fp32 accumulators (dA [R, D], dB [F, R]).

    Rows of other slots are not read, so a slot that has gone NaN can't reach another one.
    """
    for span, u, du in zip(spans, us, dus, strict=True):
        if span.slot is None or span.slot not in columns:
            continue
        rows = slice(span.start, span.stop)
        grad_a, grad_b = gradients[span.slot]
        grad_a.add_(du.T @ x_TD[rows])
        grad_b.add_((u.T @ dy_TF[rows]).T, alpha=columns[span.slot].scaling)


def grouped_linear_reference(
    x_TD: Float[Tensor, "T D"],
    weight_FD: Float[Tensor, "F D"],
    adapters: Mapping[str, tuple[Tensor, Tensor, float]],
    spans: tuple[Span, ...],
) -> Float[Tensor, "T F"]:
    """The formula as a loop, by autograd: `adapters` maps a slot to (A [R, D], B [F, R], alpha / rank)."""
    rows: list[Tensor] = []
    for span in spans:
        x = x_TD[span.start : span.stop]
        y = x @ weight_FD.T
        if span.slot is not None and span.slot in adapters:
            a_RD, b_FR, scaling = adapters[span.slot]
            y = y + scaling * (x @ a_RD.T) @ b_FR.T
        rows.append(y)
    return torch.cat(rows)
