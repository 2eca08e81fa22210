"""The bank's kernel for fp32 and fp64: many adapters of one rank as one batched product.

In these formats the base's product is not rounded to anything coarser than its accumulator, so that the adapter's part
may be added to it afterwards and nothing is swallowed; in bf16 that would be the fault that `grouped` exists to avoid.
So the base takes one product over all rows, and neighbouring slots of equal rank and equally many rows are one batch of
small products, whatever their number. Equal to `grouped.grouped_linear_reference` by test.
Suffixes: K slots of a run, L rows of each, D in, F out, R rank, T rows, C adapter columns of all slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lowregret.adapters.grouped import Columns
from lowregret.adapters.routing import Span


@dataclass(frozen=True, kw_only=True)
class Run:
    """Neighbouring slots with equally many rows and columns each.

    >>> Run(slots=("a", "b"), start=0, rows=8, column=4, rank=2).stop
    16
    """

    slots: tuple[str, ...]
    start: int
    """First row."""
    rows: int
    """Of each slot."""
    column: int
    """First adapter column."""
    rank: int

    @property
    def stop(self) -> int:
        """Row behind the last."""
        return self.start + len(self.slots) * self.rows

    def of_rows(self, rows_TX: Tensor) -> Tensor:
        """The run's rows, slot by slot: [K, L, X], a view."""
        return rows_TX[self.start : self.stop].unflatten(0, (len(self.slots), self.rows))

    def of_down(self, down_CD: Tensor) -> Tensor:
        """The run's A: [K, R, D], a view."""
        return down_CD[self.column : self._last].unflatten(0, (len(self.slots), self.rank))

    def of_up(self, up_FC: Tensor) -> Tensor:
        """The run's s B, transposed: [K, R, F], a view."""
        return up_FC[:, self.column : self._last].unflatten(1, (len(self.slots), self.rank)).permute(1, 2, 0)

    @property
    def _last(self) -> int:
        return self.column + len(self.slots) * self.rank


def runs_of(spans: Sequence[Span], columns: Mapping[str, Columns]) -> tuple[Run, ...]:
    """Spans that have columns here, gathered into runs.

    >>> columns = {"a": Columns(start=0, rank=2, scaling=1.0), "b": Columns(start=2, rank=2, scaling=1.0)}
    >>> spans = (Span(slot="a", start=0, stop=8), Span(slot="b", start=8, stop=16), Span(slot=None, start=16, stop=20))
    >>> [run.slots for run in runs_of(spans, columns)]
    [('a', 'b')]
    """
    runs: list[Run] = []
    for span in spans:
        at = columns.get(span.slot) if span.slot is not None else None
        rows = span.stop - span.start
        if span.slot is None or at is None or not rows:
            continue
        if runs:
            last = runs[-1]
            follows = (last.stop, last.column + len(last.slots) * last.rank) == (span.start, at.start)
            if follows and (last.rows, last.rank) == (rows, at.rank):
                runs[-1] = Run(
                    slots=(*last.slots, span.slot), start=last.start, rows=rows, column=last.column, rank=last.rank
                )
                continue
        runs.append(Run(slots=(span.slot,), start=span.start, rows=rows, column=at.start, rank=at.rank))
    return tuple(runs)


def stacked_linear(
    x_TD: Float[Tensor, "T D"],
    weight_FD: Float[Tensor, "F D"],
    down_CD: Float[Tensor, "C D"],
    up_FC: Float[Tensor, "F C"],
    runs: Sequence[Run],
) -> tuple[Float[Tensor, "T F"], tuple[Tensor, ...]]:
    """y = x W^T + s (x A^T) B^T for every slot's rows, and u = x A^T of each run, [K, L, R], for the backward."""
    y_TF = x_TD @ weight_FD.T
    us: list[Tensor] = []
    for run in runs:
        us.append(torch.bmm(run.of_rows(x_TD), run.of_down(down_CD).mT))
        run.of_rows(y_TF).baddbmm_(us[-1], run.of_up(up_FC))
    return y_TF, tuple(us)


def stacked_linear_backward(
    dy_TF: Float[Tensor, "T F"],
    weight_FD: Float[Tensor, "F D"],
    down_CD: Float[Tensor, "C D"],
    up_FC: Float[Tensor, "F C"],
    runs: Sequence[Run],
) -> tuple[Float[Tensor, "T D"], tuple[Tensor, ...]]:
    """Gradient of the input, and du = dy s B of each run, [K, L, R]."""
    dx_TD = dy_TF @ weight_FD
    dus: list[Tensor] = []
    for run in runs:
        dus.append(torch.bmm(run.of_rows(dy_TF), run.of_up(up_FC).mT))
        run.of_rows(dx_TD).baddbmm_(dus[-1], run.of_down(down_CD))
    return dx_TD, tuple(dus)


def accumulate_stacked_gradients(
    x_TD: Float[Tensor, "T D"],
    dy_TF: Float[Tensor, "T F"],
    us: Sequence[Tensor],
    dus: Sequence[Tensor],
    runs: Sequence[Run],
    columns: Mapping[str, Columns],
    gradients: Mapping[str, tuple[Tensor, Tensor]],
) -> None:
    """Add dA = du^T x [R, D] and dB = s dy^T u [F, R] of each slot's own rows into its accumulators."""
    for run, u_KLR, du_KLR in zip(runs, us, dus, strict=True):
        da_KRD = torch.bmm(du_KLR.mT, run.of_rows(x_TD))
        db_KFR = torch.bmm(run.of_rows(dy_TF).mT, u_KLR)
        for slot, da_RD, db_FR in zip(run.slots, da_KRD.unbind(), db_KFR.unbind(), strict=True):
            grad_a, grad_b = gradients[slot]
            grad_a.add_(da_RD)
            grad_b.add_(db_FR, alpha=columns[slot].scaling)
