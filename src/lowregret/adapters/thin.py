"""The folded kernel on a CPU that multiplies bf16: an adapter's thin products for all slots of a matrix at once.

`grouped` makes four small products a slot and a matrix by the library for large ones, which spends its time around them
and wants a primitive for each number of rows. Here each is one call a matrix (`kernels/thin.cpp`), and gradients are
summed in their fp32 accumulators without being rounded before. The large product is that of `grouped`: base and adapter
in one accumulator; tests hold both equal.
Suffixes: T rows, D in, F out, W adapter columns of a site, R columns of the widest slot.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lowregret.adapters.grouped import Columns, roomy
from lowregret.adapters.routing import Span
from lowregret.kernels import native
from lowregret.kernels.products import matmul


def serves(folded: Tensor, columns: Mapping[str, Columns], d_in: int, d_out: int) -> bool:
    """Whether the kernel takes this site and is the faster way: bf16, every slot in the arithmetic that rounds once."""
    if folded.dtype != torch.bfloat16 or not native.serves(folded) or native.best_way() is None:
        return False
    faithful = all(at.arithmetic == "accumulator" for at in columns.values())
    return faithful and d_in % native.BLOCK == 0 and d_out % native.BLOCK == 0


def thin_linear(
    x_TD: Float[Tensor, "T D"],
    folded: Float[Tensor, "FW DW"],
    spans: tuple[Span, ...],
    columns: Mapping[str, Columns],
    d_out: int,
    room: Float[Tensor, "T DX"] | None = None,
) -> tuple[Float[Tensor, "T F"], Float[Tensor, "T R"]]:
    """`grouped.grouped_linear`: y, and u = x A^T in each row's first columns, zero behind its slot's rank."""
    d_in = x_TD.shape[1]
    xu = roomy(x_TD, folded.shape[1], room)
    u_TR = x_TD.new_empty(x_TD.shape[0], _widest(columns))
    table = _table(spans, columns, {slot: folded[d_out + at.start :, :d_in] for slot, at in columns.items()})
    native.thin_in(xu[:, :d_in], table, u_TR, xu[:, d_in:], by_rows=True, way=_way(), keeps_alive=folded)
    return matmul(xu, folded[:d_out].T), u_TR


def thin_linear_backward(
    dy_TF: Float[Tensor, "T F"],
    folded: Float[Tensor, "FW DW"],
    spans: tuple[Span, ...],
    columns: Mapping[str, Columns],
    d_in: int,
    room: Float[Tensor, "T FX"] | None = None,
) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T R"]]:
    """`grouped.grouped_linear_backward`: dx, and du = dy s B in each row's first columns, zero behind its rank."""
    d_out = dy_TF.shape[1]
    dyu = roomy(dy_TF, folded.shape[0], room)
    du_TR = dy_TF.new_empty(dy_TF.shape[0], _widest(columns))
    table = _table(spans, columns, {slot: folded[:, d_in + at.start :] for slot, at in columns.items()})
    native.thin_in(dyu[:, :d_out], table, du_TR, dyu[:, d_out:], by_rows=False, way=_way(), keeps_alive=folded)
    return matmul(dyu, folded[:, :d_in]), du_TR


def accumulate_thin_gradients(
    x_TD: Float[Tensor, "T D"],
    dy_TF: Float[Tensor, "T F"],
    u_TR: Float[Tensor, "T R"],
    du_TR: Float[Tensor, "T R"],
    spans: tuple[Span, ...],
    columns: Mapping[str, Columns],
    gradients: Mapping[str, tuple[Tensor, Tensor]],
) -> None:
    """`grouped.accumulate_adapter_gradients`: dA = du^T x and dB = s dy^T u of each slot's own rows."""
    x_TD, dy_TF = _dense(x_TD), _dense(dy_TF)
    present = {slot: gradients[slot] for slot in columns}
    for slot, (grad_a, grad_b) in present.items():
        rank = columns[slot].rank
        if grad_a.shape != (rank, x_TD.shape[1]) or grad_b.shape != (dy_TF.shape[1], rank):
            raise ValueError(f"gradients of {slot!r} do not have the shapes of its adapter")
        if any(grad.dtype != torch.float32 or grad.stride(-1) != 1 for grad in (grad_a, grad_b)):
            raise TypeError(f"gradients of {slot!r} are not fp32 with the last dimension dense")
    of_a = _table(spans, columns, {slot: grad_a for slot, (grad_a, _) in present.items()})
    native.thin_out(du_TR, x_TD, of_a, torch.ones(len(spans)), turned=False, way=_way())
    of_b = _table(spans, columns, {slot: grad_b for slot, (_, grad_b) in present.items()})
    scales = [columns[s.slot].scaling if s.slot is not None and s.slot in columns else 1.0 for s in spans]
    native.thin_out(u_TR, dy_TF, of_b, torch.tensor(scales, dtype=torch.float32), turned=True, way=_way())


def _dense(tensor: Tensor) -> Tensor:
    """With channels side by side: autograd hands over expanded gradients."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _table(spans: tuple[Span, ...], columns: Mapping[str, Columns], matrices: Mapping[str, Tensor]) -> Tensor:
    """What `native.thin_in` and `thin_out` want to know of each span."""
    rows: list[tuple[int, ...]] = []
    own = [span.slot for span in spans if span.slot in columns]
    assert len(set(own)) == len(own), "two spans of one slot would write its gradient at once"
    for span in spans:
        if span.slot is None or span.slot not in columns:
            rows.append((span.start, span.stop, 0, 0, 0, 0))
            continue
        at, matrix = columns[span.slot], matrices[span.slot]
        rows.append((span.start, span.stop, matrix.data_ptr(), matrix.stride(0), at.rank, at.start))
    return torch.tensor(rows, dtype=torch.int64)


def _widest(columns: Mapping[str, Columns]) -> int:
    return max((at.rank for at in columns.values()), default=1)


def _way() -> native.Way:
    return native.best_way() or native.Way.PLAIN
