"""The bank's kernel: one linear layer with the adapters of many slots, in one accumulator.

The usual way, `bf16(W x) + bf16(s B A x)`, rounds the base first; what the adapter adds below half a unit in the last
place of that rounded number is lost. Here base and delta are summed in the matrix product's own fp32 accumulator and
rounded once. A site keeps a folded matrix

    M = [[W, sB], [A, 0]]        (F + R) x (D + R)

so that with u = x A^T the forward is `y = [x, u] [W, sB]^T` and, with du = dy sB, the gradient of the input is
`dx = [dy, du] [W; A]`: two products over views of one matrix, no second pass over the base weights.
R holds the columns of all slots side by side (`offsets`); a row has zeros in the columns of other slots.

`*_reference` are the same functions written as a loop over slots; tests hold the two equal in fp64.
Suffixes: T rows, D in, F out, R adapter columns (sum of ranks, padded).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lowregret.adapters.routing import Span

COLUMN_MULTIPLE = 16
"""Adapter columns are padded to this: 576 + 73 columns ran 35 % slower than 576, 576 + 80 lost 11 % less
(benchmarks/pieces.py)."""


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

    @property
    def stop(self) -> int:
        return self.start + self.rank


def padded_columns(num_columns: int) -> int:
    """Adapter columns rounded up to a multiple that the matrix product likes."""
    return -(-num_columns // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def grouped_linear(
    x_TD: Float[Tensor, "T D"],
    folded: Float[Tensor, "FR DR"],
    spans: tuple[Span, ...],
    columns: Mapping[str, Columns],
    d_out: int,
) -> tuple[Float[Tensor, "T F"], Float[Tensor, "T R"]]:
    """y = x W^T + s (x A^T) B^T for every slot's rows, summed in one accumulator.

    Args:
        x_TD: input rows, those of a slot adjacent as `spans` says.
        folded: M of the module docstring.
        spans: rows by slot; a slot without columns here (or None) gets the base.
        columns: adapter columns by slot.
        d_out: F.

    Returns:
        y of shape [T, F], and u = x A^T of shape [T, R] (zero outside a slot's columns), kept for the backward.
    """
    num_rows, d_in = x_TD.shape
    xu = x_TD.new_empty(num_rows, folded.shape[1])
    xu[:, :d_in] = x_TD
    u_TR = xu[:, d_in:]
    u_TR.zero_()
    for span in spans:
        if span.slot is not None and span.slot in columns:
            at = columns[span.slot]
            a_RD = folded[d_out + at.start : d_out + at.stop, :d_in]
            u_TR[span.start : span.stop, at.start : at.stop] = x_TD[span.start : span.stop] @ a_RD.T
    return xu @ folded[:d_out].T, u_TR.clone()


def grouped_linear_backward(
    dy_TF: Float[Tensor, "T F"],
    folded: Float[Tensor, "FR DR"],
    spans: tuple[Span, ...],
    columns: Mapping[str, Columns],
    d_in: int,
) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T R"]]:
    """Gradient of the input and of u, the adapter part in the same accumulator as the base part.

    Returns:
        dx of shape [T, D], and du = dy sB of shape [T, R] (zero outside a slot's columns).
    """
    num_rows, d_out = dy_TF.shape
    dyu = dy_TF.new_empty(num_rows, folded.shape[0])
    dyu[:, :d_out] = dy_TF
    du_TR = dyu[:, d_out:]
    du_TR.zero_()
    for span in spans:
        if span.slot is not None and span.slot in columns:
            at = columns[span.slot]
            b_FR = folded[:d_out, d_in + at.start : d_in + at.stop]
            du_TR[span.start : span.stop, at.start : at.stop] = dy_TF[span.start : span.stop] @ b_FR
    return dyu @ folded[:, :d_in], du_TR


def accumulate_adapter_gradients(
    x_TD: Float[Tensor, "T D"],
    dy_TF: Float[Tensor, "T F"],
    u_TR: Float[Tensor, "T R"],
    du_TR: Float[Tensor, "T R"],
    spans: tuple[Span, ...],
    columns: Mapping[str, Columns],
    gradients: Mapping[str, tuple[Tensor, Tensor]],
) -> None:
    """Add dA = du^T x and dB = s dy^T u of each slot's own rows into its fp32 accumulators (dA [R, D], dB [F, R]).

    Rows of other slots are not read, so a slot that has gone NaN can't reach another one.
    """
    for span in spans:
        if span.slot is None or span.slot not in columns:
            continue
        at = columns[span.slot]
        rows, cols = slice(span.start, span.stop), slice(at.start, at.stop)
        grad_a, grad_b = gradients[span.slot]
        grad_a.add_(du_TR[rows, cols].T @ x_TD[rows])
        grad_b.add_((u_TR[rows, cols].T @ dy_TF[rows]).T, alpha=at.scaling)


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
