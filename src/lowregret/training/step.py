"""One optimizer step: micro-batches forward and backward, then every slot's update.

The flat version of this file and of `sft.py` is `recipes/sft_loop.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowregret.adapters.routing import Routing
from lowregret.batches import PackedBatch
from lowregret.models.causal_lm import CausalLM
from lowregret.objectives.nll import nll, nll_with_gradient
from lowregret.training.memory import keep_freed_memory
from lowregret.training.optimizer import AdamW, Update

HEAD_ROWS = 32
"""Rows of a chunk of logits come in multiples of this, filled up without weight: each new number of rows costs memory
that stays (`docs/log.md`)."""


@dataclass(frozen=True, kw_only=True)
class SlotStep:
    """What one step did to one slot.

    >>> SlotStep(loss=1.25, tokens=100, completion_tokens=40, grad_norm=0.5, diverged=False).loss
    1.25
    """

    loss: float
    """Mean NLL of the step's completion tokens before the update, nats."""
    tokens: int
    """All tokens of the step, prompts included."""
    completion_tokens: int
    """Those of them that carried loss."""
    grad_norm: float
    """Global gradient norm before clipping."""
    diverged: bool
    """True where loss or gradient was not finite: the slot was retired and its weights were left alone."""


def train_step(
    model: CausalLM,
    batches: Sequence[PackedBatch],
    optimizers: Mapping[str, AdamW],
    *,
    factor: float,
) -> dict[str, SlotStep]:
    """Accumulate the gradients of all micro-batches, then update every slot that had tokens.

    The loss of a slot is the mean over its completion tokens in the whole step, so splitting the step into
    micro-batches in another way gives the same update.
    """
    assert model.trainable is not None
    model.trainable.zero_grad()
    totals = _weight_totals(batches)
    losses = dict.fromkeys(totals, 0.0)
    for batch in batches:
        for slot, loss in forward_backward(model, batch, totals).items():
            losses[slot] += loss
        keep_freed_memory(model.device)
    report: dict[str, SlotStep] = {}
    for slot, loss in losses.items():
        norm, healthy = update_slot(model, slot, optimizers[slot], math.isfinite(loss), factor=factor)
        tokens = sum(batch.num_real_tokens.get(slot, 0) for batch in batches)
        report[slot] = SlotStep(
            loss=loss,
            tokens=tokens,
            completion_tokens=round(totals[slot]),
            grad_norm=norm,
            diverged=not healthy,
        )
    return report


def update_slot(model: CausalLM, slot: str, optimizer: AdamW, finite: bool, *, factor: float) -> tuple[float, bool]:
    """Take the optimizer's step and publish it; returns the gradient's norm and whether the slot is healthy.

    The copy's random rounding depends on the number of updates, which a checkpoint holds, and on nothing else.

    A slot whose loss is not `finite`, or whose gradient or weights are not, is retired and its working copy left alone.
    """
    assert model.trainable is not None
    update = Update(norm=float("nan"), bounded=False)
    if finite:
        update = optimizer.step(model.trainable.blocks(slot), factor)
    # An infinity in the working copy would reach other slots' rows as 0 * inf: it is never published.
    if update.bounded:
        model.trainable.publish(slot, optimizer.updates)
    else:
        model.trainable.retire(slot)
    return update.norm, update.bounded


def forward_backward(model: CausalLM, batch: PackedBatch, totals: Mapping[str, float]) -> dict[str, float]:
    """One micro-batch: adds to the slots' gradients, returns each slot's share of its mean loss."""
    batch = batch.to(model.device)
    normaliser_T = _per_token(batch, {slot: 1.0 / total for slot, total in totals.items()})
    positions = torch.nonzero(batch.weights).flatten()
    weights_P = batch.weights[positions] * normaliser_T[positions]
    targets_P = batch.targets[positions]
    losses_P = accumulate_gradients(model, batch, positions, targets_P, lambda rows, losses: weights_P[rows])
    return _sum_by_slot(batch, positions, losses_P * weights_P)


Weigh = Callable[[slice, Tensor], Tensor]
"""From some loss positions and their nll to the derivative of the objective with respect to it."""


def accumulate_gradients(
    model: CausalLM,
    batch: PackedBatch,
    positions: Tensor,
    targets_P: Tensor,
    weigh: Weigh,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Forward and backward of one micro-batch on the model's device; returns the nll of each loss position.

    Logits exist for one chunk of loss positions at a time; the body's backward runs once, from the hidden states.

    Args:
        positions: rows of the batch whose hidden states predict something, those of a slot together and the slots in
            the batch's order; a row may stand several times.
        targets_P: the token that each of them is to predict.
    """
    rows = positions.tolist()  # before a GPU has the forward to do: this waits for it
    with model.routed(Routing.from_lengths(batch.slot_lengths)):
        hidden_TD = model.hidden(batch)
        leaf_PD = hidden_TD.detach()[positions]
        losses_P, grad_PD = _head_backward(model, leaf_PD, batch, rows, targets_P, weigh, temperature)
        # Rows that stand several times are summed before they are rounded.
        once = len(set(rows)) == len(rows)
        wide = hidden_TD.dtype if once else torch.promote_types(hidden_TD.dtype, torch.float32)
        grad_TD = torch.zeros_like(hidden_TD, dtype=wide).index_add_(0, positions, grad_PD.to(wide))
        hidden_TD.backward(grad_TD.to(hidden_TD.dtype))
    return losses_P


def _head_backward(
    model: CausalLM,
    leaf_PD: Tensor,
    batch: PackedBatch,
    positions: list[int],
    targets_P: Tensor,
    weigh: Weigh,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Loss of each position and the gradient of its hidden state, chunk by chunk."""
    routing = Routing.from_lengths(batch.slot_lengths)
    losses, grads = [], []
    for rows in _chunks(len(positions), model.chunk_rows):
        own = positions[rows]
        number = len(own)
        filled = -number % HEAD_ROWS
        chunk = pad(leaf_PD[rows], (0, 0, 0, filled)).requires_grad_()
        with model.routed(routing.selected(own + own[-1:] * filled)):
            logits = model.logits(chunk)
            scaled = _at(temperature, logits.detach().clone() if model.keeps_logits else logits.detach())
            chunk_losses, grad_logits = nll_with_gradient(
                scaled, pad(targets_P[rows], (0, filled)), _filled(weigh, rows, number, filled)
            )
            logits.backward(_at(temperature, grad_logits).to(logits.dtype))
        assert chunk.grad is not None
        losses.append(chunk_losses[:number])
        grads.append(chunk.grad[:number])
    return torch.cat(losses), torch.cat(grads)


def _at(temperature: float, logits: Tensor) -> Tensor:
    """Logits, or their gradient, at a temperature; divided in fp32, as the sampler does."""
    if temperature == 1.0:
        return logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _filled(weigh: Weigh, rows: slice, number: int, filled: int) -> Callable[[Tensor], Tensor]:
    """`weigh` for a chunk with rows behind its own, which weigh nothing."""
    return lambda losses: pad(weigh(rows, losses[:number]), (0, filled))


def batch_nll(
    model: CausalLM, batch: PackedBatch, routing: Routing | None = None, *, temperature: float = 1.0
) -> Tensor:
    """NLL of every loss position of a packed batch, nats, in order of the tokens; nothing is trained.

    Args:
        routing: rows to slots; None: as the batch says. A routing to None gives the base model.
        temperature: logits are divided by it.
    """
    batch = batch.to(model.device)
    positions = torch.nonzero(batch.weights).flatten()
    return nll_at(model, batch, positions, batch.targets[positions], routing, temperature=temperature)


@torch.no_grad()
def nll_at(
    model: CausalLM,
    batch: PackedBatch,
    positions: Tensor,
    targets_P: Tensor,
    routing: Routing | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """`batch_nll` of given positions and targets, as `accumulate_gradients` takes them, of a batch on the device."""
    routing = routing or Routing.from_lengths(batch.slot_lengths)
    every = positions.tolist()
    with model.routed(routing):
        hidden_TD = model.hidden(batch)
    losses = []
    for rows in _chunks(len(every), model.chunk_rows):
        with model.routed(routing.selected(every[rows])):
            logits = _at(temperature, model.logits(hidden_TD[positions[rows]]))
            losses.append(nll(logits, targets_P[rows]))
    return torch.cat(losses)


def _chunks(number: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, number, size)]


def _weight_totals(batches: Sequence[PackedBatch]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for batch in batches:
        parts = batch.weights.split(list(batch.segment_lengths))
        for slot, part in zip(batch.segment_slots, parts, strict=True):
            totals[slot] = totals.get(slot, 0.0) + float(part.sum())
    return totals


def _per_token(batch: PackedBatch, by_slot: Mapping[str, float]) -> Tensor:
    values = torch.tensor([by_slot[slot] for slot in batch.segment_slots], dtype=batch.weights.dtype)
    lengths = torch.tensor(batch.segment_lengths)
    return torch.repeat_interleave(values, lengths).to(batch.weights.device)


def _sum_by_slot(batch: PackedBatch, positions: Tensor, values_P: Tensor) -> dict[str, float]:
    """Sums of each slot's own values; a GPU is waited for once."""
    sums: list[Tensor] = []
    start = 0
    for length in batch.slot_lengths.values():
        inside = (positions >= start) & (positions < start + length)
        sums.append(torch.where(inside, values_P, 0.0).double().sum())  # selected, so that a NaN stays with its slot
        start += length
    return dict(zip(batch.slot_lengths, torch.stack(sums).tolist(), strict=True))
