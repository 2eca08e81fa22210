"""The folded kernel without a loop over slots: a few launches a matrix, however many adapters there are.

`grouped` takes each slot's rows by itself, eight small operations a slot and a matrix, which a GPU spends its time on
launching. Here all rows meet all A at once, and a mask leaves each row its own slot's columns; the gradients are one
product of jagged groups each, in which no row of another slot is read. The sums are those of `grouped`, base and
adapter in one fp32 accumulator; tests hold both equal.
Suffixes: T rows, D in, F out, W adapter columns of a site, R columns of the widest slot, G spans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import grouped_mm

from lowregret.adapters.grouped import Columns, roomy
from lowregret.adapters.routing import Span
from lowregret.kernels.products import matmul

ALIGNED = 8
"""Columns of a jagged product come in multiples of this: its rows begin at multiples of 16 bytes in bf16."""
GROUPED = (9, 10)
"""Compute capabilities (major) with a kernel for jagged products; on others torch waits for the offsets and loops."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Owners:
    """Which adapter columns each row may use; the same for all sites of a forward that have the same columns."""

    mask: Bool[Tensor, "T W"]
    own: Int[Tensor, "T R"]
    """The row's own columns, int64; behind the last of them a column that is not its own."""
    ends: Int[Tensor, " G"]
    """Row behind each span, int32."""


def serves(folded: Tensor) -> bool:
    """Whether launches are what costs: bf16 on a GPU."""
    return folded.device.type == "cuda" and folded.dtype == torch.bfloat16


def pays(spans: tuple[Span, ...], columns: Mapping[str, Columns], d_in: int, d_out: int) -> bool:
    """Whether several spans have columns here, in the arithmetic that rounds once, of a matrix whose rows align."""
    present = [columns[span.slot] for span in spans if span.slot is not None and span.slot in columns]
    faithful = all(at.arithmetic == "accumulator" for at in present)
    return len(present) > 1 and faithful and d_in % ALIGNED == 0 and d_out % ALIGNED == 0


def owners(
    spans: tuple[Span, ...], columns: tuple[tuple[str, Columns], ...], width: int, device: torch.device
) -> Owners:
    """One row a span is sent to the device, and spread over the span's rows there.

    Args:
        columns: by slot, as items.
        width: W, padding included.
    """
    at_of = dict(columns)
    widest = max(at.rank for at in at_of.values())
    num_own = -(-widest // ALIGNED) * ALIGNED
    lengths = torch.tensor([span.stop - span.start for span in spans])
    num_rows = spans[-1].stop
    mask_GW = torch.zeros(len(spans), width, dtype=torch.bool)
    own_GR = torch.zeros(len(spans), num_own, dtype=torch.int64)
    for group, span in enumerate(spans):
        at = at_of.get(span.slot) if span.slot is not None else None
        start, stop = (0, 0) if at is None else (at.start, at.stop)
        mask_GW[group, start:stop] = True
        own_GR[group] = 0 if start else width - 1  # a column of another slot, or one that rounds W up
        own_GR[group, : stop - start] = torch.arange(start, stop)
    sent = lengths.to(device)
    return Owners(
        mask=mask_GW.to(device).repeat_interleave(sent, 0, output_size=num_rows),
        own=own_GR.to(device).repeat_interleave(sent, 0, output_size=num_rows),
        ends=lengths.cumsum(0).to(torch.int32).to(device),
    )


def jagged_linear(
    x_TD: Float[Tensor, "T D"],
    folded: Float[Tensor, "FW DW"],
    found: Owners,
    d_out: int,
    room: Float[Tensor, "T DX"] | None = None,
) -> tuple[Float[Tensor, "T F"], Float[Tensor, "T R"]]:
    """`grouped.grouped_linear`: y, and u = x A^T in each row's own columns, zero behind them."""
    d_in = x_TD.shape[1]
    xu = roomy(x_TD, folded.shape[1], room)
    u_TW = _masked(matmul(x_TD, folded[d_out:, :d_in].T), found)
    xu[:, d_in:] = u_TW
    return matmul(xu, folded[:d_out].T), u_TW.gather(1, found.own)


def jagged_linear_backward(
    dy_TF: Float[Tensor, "T F"],
    folded: Float[Tensor, "FW DW"],
    found: Owners,
    d_in: int,
    room: Float[Tensor, "T FX"] | None = None,
) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T R"]]:
    """`grouped.grouped_linear_backward`: dx, and du = dy s B in each row's own columns, zero behind them."""
    d_out = dy_TF.shape[1]
    dyu = roomy(dy_TF, folded.shape[0], room)
    du_TW = _masked(matmul(dy_TF, folded[:d_out, d_in:]), found)
    dyu[:, d_out:] = du_TW
    return matmul(dyu, folded[:, :d_in]), du_TW.gather(1, found.own)


def _masked(u_TW: Tensor, found: Owners) -> Tensor:
    """Zero in the columns of other slots, whatever stood there: a product would let their NaN through."""
    return torch.where(found.mask, u_TW, u_TW.new_zeros(()))


def accumulate_jagged_gradients(
    x_TD: Float[Tensor, "T D"],
    dy_TF: Float[Tensor, "T F"],
    u_TR: Float[Tensor, "T R"],
    du_TR: Float[Tensor, "T R"],
    found: Owners,
    spans: tuple[Span, ...],
    columns: Mapping[str, Columns],
    gradients: Mapping[str, tuple[Tensor, Tensor]],
) -> None:
    """`grouped.accumulate_adapter_gradients`: dA = du^T x and dB = s dy^T u of each slot's own rows."""
    da_GRD = _jagged_product(du_TR, x_TD, found, spans)
    db_GFR = _jagged_product(dy_TF, u_TR, found, spans)
    slots = [(group, span.slot) for group, span in enumerate(spans) if span.slot is not None and span.slot in columns]
    ranks = {slot: columns[slot].rank for _, slot in slots}
    # One launch for all slots of equal rank and scaling.
    add = torch._foreach_add_  # pyright: ignore[reportPrivateImportUsage]
    add([gradients[slot][0] for _, slot in slots], [da_GRD[k, : ranks[slot]] for k, slot in slots])
    for scaling in {columns[slot].scaling for _, slot in slots}:
        own = [(k, slot) for k, slot in slots if columns[slot].scaling == scaling]
        add([gradients[slot][1] for _, slot in own], [db_GFR[k, :, : ranks[slot]] for k, slot in own], alpha=scaling)


def _jagged_product(a_TX: Tensor, b_TY: Tensor, found: Owners, spans: tuple[Span, ...]) -> Float[Tensor, "G X Y"]:
    """a^T b of each span's rows, rounded as `grouped` rounds it, and then in the format of the accumulators."""
    if _has_kernel(a_TX.device):
        product = grouped_mm(a_TX.T, b_TY, offs=found.ends)
    else:
        rows = [slice(span.start, span.stop) for span in spans]
        product = torch.stack([matmul(a_TX[own].T, b_TY[own]) for own in rows])
    return product.to(torch.promote_types(product.dtype, torch.float32))


@cache
def _has_kernel(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in GROUPED
