"""A linear layer whose output is adapted by the slots of a bank.

Takes the place of an `nn.Linear`. Its weight is a view of the folded matrix (`grouped.py`), so the base is held once;
it is frozen and never written to. Adapter gradients go straight into the bank's fp32 accumulators, not through
autograd's leaves, so accumulation over micro-batches is fp32 in every dtype.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowregret.adapters.grouped import (
    Columns,
    accumulate_adapter_gradients,
    grouped_linear,
    grouped_linear_backward,
    padded_columns,
)
from lowregret.adapters.routing import Routing


class RoutingCell:
    """Holds the routing of the forward under way; one per bank, shared with its sites."""

    def __init__(self) -> None:
        self.routing: Routing | None = None

    def current(self) -> Routing:
        """The routing of this forward.

        Raises:
            RuntimeError: an adapted layer runs outside `bank.route(...)`.
        """
        if self.routing is None:
            raise RuntimeError("an adapted layer ran outside `with bank.route(...)`")
        return self.routing


class AdaptedLinear(nn.Module):
    """y = x W^T + bias + s (x A^T) B^T, with A and B of the slot that each row belongs to."""

    def __init__(self, linear: nn.Linear, name: str, cell: RoutingCell) -> None:
        super().__init__()
        self.name = name
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.cell = cell
        self.columns: dict[str, Columns] = {}
        self.gradients: dict[str, tuple[Tensor, Tensor]] = {}
        self.register_buffer("folded", linear.weight.detach(), persistent=False)
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def reserve(self, columns: dict[str, Columns]) -> None:
        """Make room for these adapter columns; all adapter entries become zero until `write` fills them."""
        folded = cast(Tensor, self.folded)
        width = padded_columns(max((at.stop for at in columns.values()), default=0))
        fresh = folded.new_zeros(self.out_features + width, self.in_features + width)
        fresh[: self.out_features, : self.in_features] = folded[: self.out_features, : self.in_features]
        self.folded = fresh
        self.weight = nn.Parameter(fresh[: self.out_features, : self.in_features], requires_grad=False)
        self.columns = columns

    def write(self, slot: str, a_RD: Float[Tensor, "R D"], b_FR: Float[Tensor, "F R"]) -> None:
        """Copy a slot's masters into the folded matrix, in its dtype, B times alpha / rank."""
        at = self.columns[slot]
        folded = cast(Tensor, self.folded)
        folded[self.out_features + at.start : self.out_features + at.stop, : self.in_features] = a_RD
        folded[: self.out_features, self.in_features + at.start : self.in_features + at.stop] = b_FR * at.scaling

    def clear(self, slot: str) -> None:
        """Zero a slot's columns: its rows then give the base model."""
        at = self.columns[slot]
        folded = cast(Tensor, self.folded)
        folded[self.out_features + at.start : self.out_features + at.stop] = 0
        folded[:, self.in_features + at.start : self.in_features + at.stop] = 0

    def forward(self, x: Tensor) -> Tensor:
        """x of shape [..., D] to [..., F]."""
        flat = x.reshape(-1, self.in_features)
        y = _AdaptedLinearFunction.apply(flat, self)
        y = cast(Tensor, y).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias


class _AdaptedLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, layer: AdaptedLinear) -> Tensor:
        spans = layer.cell.current().spans_of(x_TD.shape[0])
        y_TF, u_TR = grouped_linear(x_TD, cast(Tensor, layer.folded), spans, layer.columns, layer.out_features)
        ctx.save_for_backward(x_TD, u_TR)
        ctx.layer, ctx.spans = layer, spans
        return y_TF

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (dy_TF,) = grad_outputs
        x_TD, u_TR = ctx.saved_tensors
        layer: AdaptedLinear = ctx.layer
        dx_TD, du_TR = grouped_linear_backward(
            dy_TF, cast(Tensor, layer.folded), ctx.spans, layer.columns, layer.in_features
        )
        accumulate_adapter_gradients(x_TD, dy_TF, u_TR, du_TR, ctx.spans, layer.columns, layer.gradients)
        return dx_TD, None
