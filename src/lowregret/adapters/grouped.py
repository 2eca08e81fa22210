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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lowregret.adapters.routing import Span
from lowregret.kernels.products import matmul
from lowregret.specs import Arithmetic

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
    arithmetic: Arithmetic = "accumulator"
    """How the slot's part joins the base's; of no effect in fp32 and fp64."""

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
    room: Float[Tensor, "T DX"] | None = None,
) -> tuple[Float[Tensor, "T F"], tuple[Tensor, ...]]:
    """y = x W^T + s (x A^T) B^T for every slot's rows, folded.

    Args:
        x_TD: input rows, those of a slot adjacent as `spans` says.
        folded: M of the module docstring.
        spans: rows by slot; a slot without columns here (or None) gets the base.
        columns: adapter columns by slot.
        d_out: F.
        room: a buffer whose first D columns are x and whose others are free, at least as many as adapter columns;
            saves copying x.

    Returns:
        y of shape [T, F], and for each span u = x A^T of shape [rows, rank], kept for the backward.
    """
    d_in = x_TD.shape[1]
    xu = _with_tail(x_TD, folded.shape[1], room)
    us: list[Tensor] = []
    for span, at in _adapted(spans, columns):
        if at is None:
            us.append(x_TD.new_empty(0))
            continue
        us.append(matmul(x_TD[span.start : span.stop], folded[d_out + at.start : d_out + at.stop, :d_in].T))
        if at.arithmetic == "accumulator":
            xu[span.start : span.stop, d_in + at.start : d_in + at.stop] = us[-1]
    y_TF = matmul(xu, folded[:d_out].T)
    for (span, at), u in zip(_adapted(spans, columns), us, strict=True):
        if at is not None and at.arithmetic != "accumulator":
            up_FR = folded[:d_out, d_in + at.start : d_in + at.stop]
            _join_late(y_TF[span.start : span.stop], u, up_FR.T, at.arithmetic)
    return y_TF, tuple(us)


def grouped_linear_backward(
    dy_TF: Float[Tensor, "T F"],
    folded: Float[Tensor, "FR DR"],
    spans: tuple[Span, ...],
    columns: Mapping[str, Columns],
    d_in: int,
    room: Float[Tensor, "T FX"] | None = None,
) -> tuple[Float[Tensor, "T D"], tuple[Tensor, ...]]:
    """Gradient of the input, the adapter part in the same accumulator as the base part; folded.

    Args:
        room: as in `grouped_linear`, of dy.

    Returns:
        dx of shape [T, D], and for each span du = dy sB of shape [rows, rank].
    """
    d_out = dy_TF.shape[1]
    dyu = _with_tail(dy_TF, folded.shape[0], room)
    dus: list[Tensor] = []
    for span, at in _adapted(spans, columns):
        if at is None:
            dus.append(dy_TF.new_empty(0))
            continue
        dus.append(matmul(dy_TF[span.start : span.stop], folded[:d_out, d_in + at.start : d_in + at.stop]))
        if at.arithmetic == "accumulator":
            dyu[span.start : span.stop, d_out + at.start : d_out + at.stop] = dus[-1]
    dx_TD = matmul(dyu, folded[:, :d_in])
    for (span, at), du in zip(_adapted(spans, columns), dus, strict=True):
        if at is not None and at.arithmetic != "accumulator":
            down_RD = folded[d_out + at.start : d_out + at.stop, :d_in]
            _join_late(dx_TD[span.start : span.stop], du, down_RD, at.arithmetic)
    return dx_TD, tuple(dus)


def roomy(x_TD: Float[Tensor, "T D"], width: int, room: Tensor | None) -> Tensor:
    """x and whatever stands behind it, `width` columns: in the room that x stands in, or copied."""
    num_rows, d_in = x_TD.shape
    if room is None:
        room = x_TD.new_empty(num_rows, width)
        room[:, :d_in] = x_TD
    return room[:, :width]


def _with_tail(x_TD: Tensor, width: int, room: Tensor | None) -> Tensor:
    """[x, 0] of `width` columns."""
    room = roomy(x_TD, width, room)
    room[:, x_TD.shape[1] :].zero_()
    return room


def _adapted(spans: tuple[Span, ...], columns: Mapping[str, Columns]) -> Iterator[tuple[Span, Columns | None]]:
    """Each span with its slot's columns here, None where it has none."""
    for span in spans:
        yield span, columns.get(span.slot) if span.slot is not None else None


def _join_late(base_TX: Tensor, u_TR: Tensor, matrix_RX: Tensor, arithmetic: Arithmetic) -> None:
    """The arithmetics that are kept for measurement: the adapter's part meets a base that was rounded before."""
    if arithmetic == "add":
        base_TX += matmul(u_TR, matrix_RX)
    else:
        wide = torch.promote_types(base_TX.dtype, torch.float32)
        base_TX.copy_(base_TX.to(wide) + u_TR.to(wide) @ matrix_RX.to(wide))


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
    for span, at in _adapted(spans, columns):
        x = x_TD[span.start : span.stop]
        us.append(x_TD.new_empty(0) if at is None else matmul(x, down_RD[at.start : at.stop].T))
        if at is None or at.silent:
            continue
        if base_from < span.start:
            outputs.append(matmul(x_TD[base_from : span.start], weight_FD.T))
        outputs.append(_joined(x, us[-1], weight_FD.T, up_FR[:, at.start : at.stop].T, at.arithmetic))
        base_from = span.stop
    if base_from < x_TD.shape[0]:
        outputs.append(matmul(x_TD[base_from:], weight_FD.T))
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
    for span, at in _adapted(spans, columns):
        dy = dy_TF[span.start : span.stop]
        if at is None:
            dus.append(dy_TF.new_empty(0))
            outputs.append(matmul(dy, weight_FD))
            continue
        dus.append(matmul(dy, up_FR[:, at.start : at.stop]))
        outputs.append(_joined(dy, dus[-1], weight_FD, down_RD[at.start : at.stop], at.arithmetic))
    return torch.cat(outputs), tuple(dus)


def _joined(x_TK: Tensor, u_TR: Tensor, base_KX: Tensor, matrix_RX: Tensor, arithmetic: Arithmetic) -> Tensor:
    """[x, u] [base; matrix] in one product, or in the arithmetic asked for."""
    if arithmetic == "accumulator":
        return matmul(torch.cat([x_TK, u_TR], 1), torch.cat([base_KX, matrix_RX], 0))
    y_TX = matmul(x_TK, base_KX)
    _join_late(y_TX, u_TR, matrix_RX, arithmetic)
    return y_TX


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
        grad_a.add_(matmul(du.T, x_TD[rows]))
        grad_b.add_(matmul(u.T, dy_TF[rows]).T, alpha=columns[span.slot].scaling)


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
