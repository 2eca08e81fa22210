"""A linear layer whose output is adapted by the slots of a bank.

Takes the place of an `nn.Linear`. Where the site is folded (`grouped.py`) its weight is a view of the folded matrix, so
the base is held once; it is frozen and never written to. Adapter gradients go straight into the bank's fp32
accumulators, not through autograd's leaves, so accumulation over micro-batches is fp32 in every dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowregret.adapters import jagged, thin
from lowregret.adapters.grouped import (
    Columns,
    accumulate_adapter_gradients,
    fits_folded,
    grouped_linear,
    grouped_linear_backward,
    padded_columns,
    separate_linear,
    separate_linear_backward,
)
from lowregret.adapters.routing import Routing, Span
from lowregret.adapters.stacked import accumulate_stacked_gradients, runs_of, stacked_linear, stacked_linear_backward
from lowregret.kernels.products import widens

LARGEST_WIDE = 4 << 20
"""Elements of the largest weight of which an fp32 copy is made in passing, 16 MiB."""


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
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.working = WorkingCopy(folded=None, down=self.weight.new_empty(0), up=self.weight.new_empty(0))

    @property
    def stacks(self) -> bool:
        """Whether the adapters' part may be added to the base's product (`stacked`): in formats that round to nothing
        coarser than the accumulator."""
        return self.working.folded is None and self.weight.dtype in (torch.float32, torch.float64)

    @property
    def stacks_wide(self) -> bool:
        """Whether it is bf16 that is multiplied in fp32 anyway (`products.widens`): there the parts are added in fp32
        and rounded once, which is the one accumulator, without a copy of W for each slot. Not for the arithmetics that
        round in between, nor where an fp32 copy of W would be large."""
        return self.is_faithful and self.weight.numel() <= LARGEST_WIDE and widens(self.weight)

    @property
    def is_faithful(self) -> bool:
        """Whether every slot's part joins the base's in one accumulator."""
        return all(at.arithmetic == "accumulator" for at in self.columns.values())

    def reserve(self, columns: dict[str, Columns]) -> None:
        """Make room for these adapter columns; all adapter entries become zero until `write` fills them."""
        d_in, d_out = self.in_features, self.out_features
        num_columns = max((at.stop for at in columns.values()), default=0)
        weight = self.weight.detach()
        if fits_folded(num_columns, d_in):
            width = padded_columns(num_columns)
            folded = weight.new_zeros(d_out + width, d_in + width)
            folded[:d_out, :d_in] = weight
            self.weight = nn.Parameter(folded[:d_out, :d_in], requires_grad=False)
            self.working = WorkingCopy(folded=folded, down=folded[d_out:, :d_in], up=folded[:d_out, d_in:])
        else:
            down, up = weight.new_zeros(num_columns, d_in), weight.new_zeros(d_out, num_columns)
            self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            self.working = WorkingCopy(folded=None, down=down, up=up)
        self.columns = columns

    def write(self, slot: str, a_RD: Float[Tensor, "R D"], b_FR: Float[Tensor, "F R"], *, silent: bool) -> None:
        """Copy a slot's masters into the working copy, in its dtype, B times alpha / rank.

        Args:
            silent: B is zero; known to the caller, who asks a GPU once for all sites.
        """
        at = self.columns[slot]
        self.working.down[at.start : at.stop] = a_RD
        self.working.up[:, at.start : at.stop] = b_FR * at.scaling
        self.columns[slot] = replace(at, silent=silent)

    def clear(self, slot: str) -> None:
        """Zero a slot's columns: its rows then give the base model."""
        at = self.columns[slot]
        self.working.down[at.start : at.stop] = 0
        self.working.up[:, at.start : at.stop] = 0
        self.columns[slot] = replace(at, silent=True)

    @property
    def room(self) -> int:
        """Columns behind x in which `apply_to` can do without a copy of it; `pull_back` needs as many behind dy."""
        return 0 if self.working.folded is None else self.working.folded.shape[1] - self.in_features

    def apply_to(self, x_TD: Tensor, room: Tensor | None = None) -> tuple[Tensor, Kept]:
        """The output without bias, [T, F], and what `pull_back` needs; outside autograd.

        Args:
            room: a buffer that begins with x and has at least `self.room` free columns behind it.
        """
        routing = self.cell.current()
        spans = routing.spans_of(x_TD.shape[0])
        working, columns = self.working, self.columns
        if self.stacks_wide:
            matrices = (self.weight.float(), working.down.float(), working.up.float())
            y_TF, us = stacked_linear(x_TD.float(), *matrices, runs_of(spans, columns))
            return y_TF.to(x_TD.dtype), Kept(spans=spans, us=us)
        if self.stacks:
            y_TF, us = stacked_linear(x_TD, self.weight, working.down, working.up, runs_of(spans, columns))
        elif working.folded is not None and (owners := self._owners(routing, spans)) is not None:
            y_TF, u_TR = jagged.jagged_linear(x_TD, working.folded, owners, self.out_features, room)
            return y_TF, Kept(spans=spans, us=(u_TR,), owners=owners)
        elif working.folded is not None and self._is_thin:
            y_TF, u_TR = thin.thin_linear(x_TD, working.folded, spans, columns, self.out_features, room)
            return y_TF, Kept(spans=spans, us=(u_TR,), thin=True)
        elif working.folded is not None:
            y_TF, us = grouped_linear(x_TD, working.folded, spans, columns, self.out_features, room)
        else:
            y_TF, us = separate_linear(x_TD, self.weight, working.down, working.up, spans, columns)
        return y_TF, Kept(spans=spans, us=us)

    def pull_back(self, x_TD: Tensor, dy_TF: Tensor, kept: Kept, room: Tensor | None = None) -> Tensor:
        """Gradient of the input, [T, D]; adds to the slots' gradients."""
        working, columns, gradients, us = self.working, self.columns, self.gradients, kept.us
        if self.stacks or self.stacks_wide:
            wide = torch.promote_types(x_TD.dtype, torch.float32)
            x, dy, runs = x_TD.to(wide), dy_TF.to(wide), runs_of(kept.spans, columns)
            matrices = (self.weight.to(wide), working.down.to(wide), working.up.to(wide))
            dx_TD, dus = stacked_linear_backward(dy, *matrices, runs)
            accumulate_stacked_gradients(x, dy, us, dus, runs, columns, gradients)
            return dx_TD.to(x_TD.dtype)
        if working.folded is not None and kept.owners is not None:
            dx_TD, du_TR = jagged.jagged_linear_backward(dy_TF, working.folded, kept.owners, self.in_features, room)
            jagged.accumulate_jagged_gradients(x_TD, dy_TF, us[0], du_TR, kept.owners, kept.spans, columns, gradients)
            return dx_TD
        if working.folded is not None and kept.thin:
            dx_TD, du_TR = thin.thin_linear_backward(dy_TF, working.folded, kept.spans, columns, self.in_features, room)
            thin.accumulate_thin_gradients(x_TD, dy_TF, us[0], du_TR, kept.spans, columns, gradients)
            return dx_TD
        if working.folded is not None:
            dx_TD, dus = grouped_linear_backward(dy_TF, working.folded, kept.spans, columns, self.in_features, room)
        else:
            dx_TD, dus = separate_linear_backward(dy_TF, self.weight, working.down, working.up, kept.spans, columns)
        accumulate_adapter_gradients(x_TD, dy_TF, us, dus, kept.spans, columns, gradients)
        return dx_TD

    @property
    def _is_thin(self) -> bool:
        folded = self.working.folded
        return folded is not None and thin.serves(folded, self.columns, self.in_features, self.out_features)

    def _owners(self, routing: Routing, spans: tuple[Span, ...]) -> jagged.Owners | None:
        """Who owns which columns, where all slots go at once; None where each goes by itself."""
        folded = self.working.folded
        if folded is None or not jagged.serves(folded):
            return None
        if not jagged.pays(spans, self.columns, self.in_features, self.out_features):
            return None
        columns, width, device = tuple(self.columns.items()), self.room, folded.device
        return routing.once((spans, columns, width), lambda: jagged.owners(spans, columns, width, device))

    def forward(self, x: Tensor) -> Tensor:
        """x of shape [..., D] to [..., F]."""
        flat = x.reshape(-1, self.in_features)
        y = cast(Tensor, _AdaptedLinearFunction.apply(flat, self)).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the backward of an adapted layer needs besides x.

    >>> Kept(spans=(), us=()).us
    ()
    """

    spans: tuple[Span, ...]
    us: tuple[Tensor, ...]
    """u = x A^T of each span; of each run of spans where they are stacked; of all rows where they are jagged or
    thin."""
    owners: jagged.Owners | None = None
    """Where they are jagged."""
    thin: bool = False
    """Whether it was made by `thin`."""


@dataclass(frozen=True, kw_only=True)
class WorkingCopy:
    """The adapters in the format that computes.

    >>> WorkingCopy(folded=None, down=torch.zeros(2, 3), up=torch.zeros(4, 2)).folded is None
    True
    """

    folded: Tensor | None
    """[[W, sB], [A, 0]], or None where the layout is separate."""
    down: Tensor
    """A of all slots, [R, D]; a view of `folded` where there is one."""
    up: Tensor
    """s B of all slots, [F, R]; likewise."""


class _AdaptedLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, layer: AdaptedLinear) -> Tensor:
        y_TF, kept = layer.apply_to(x_TD)
        ctx.save_for_backward(x_TD, *kept.us)
        ctx.layer, ctx.kept = layer, replace(kept, us=())
        return y_TF

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (dy_TF,) = grad_outputs
        x_TD, *us = ctx.saved_tensors
        layer: AdaptedLinear = ctx.layer
        return layer.pull_back(x_TD, dy_TF, replace(ctx.kept, us=tuple(us))), None
