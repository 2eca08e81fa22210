"""Forward fidelity: how much of a slot's update each bf16 arithmetic lets act (science.md, "The swallowed update").

The fp32 masters that a slot has after a step are evaluated in fp32, on a copy of the base that is loaded for the while
(for adapters: of the bf16 base that they train on), and in every arithmetic in use. Each loss is set against the same
arithmetic's own loss with the untrained adapter or weights, on the same held-out sequences. Nothing of the run is
changed by it: a run that measures trains bitwise as one that does not, and a resumed run logs the same rows, because
every random bit depends on (seed, step, name) alone.

Memory, for the while: 4 bytes a weight of the base for the fp32 copy, and beside adapters 2 more for merged weights.
Time: a lane of adapters takes an evaluation of the validation split in fp32 and five in bf16 for each slot; full
fine-tuning one in fp32 and two in bf16; and once as many again, of the untrained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from lowregret.adapters.bank import AdapterBank, SlotWeights
from lowregret.adapters.full import FullParameters, rounded_to_bf16, rounding_stream
from lowregret.batches import TokenizedExample
from lowregret.errors import SpecError
from lowregret.models.causal_lm import CausalLM
from lowregret.models.load import cast_parameters, load_module, load_start, with_bank
from lowregret.models.locate import ModelFolder
from lowregret.specs import Arithmetic, Rounding
from lowregret.store.rows import FidelityRow
from lowregret.training.evaluate import BASE, evaluate
from lowregret.training.measure import forward_fidelity
from lowregret.training.memory import release_freed_memory
from lowregret.training.state import Lane

FP32 = "fp32"
ARITHMETICS: tuple[Arithmetic, ...] = get_args(Arithmetic)
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
LEAST_SEQUENCES = 2
"""Of a bootstrap."""

Losses = tuple[float, ...]
"""Summed nll of each held-out sequence, nats."""


class FidelityMeter:
    """Measures the lanes of a run, and remembers the losses of what is not trained yet."""

    def __init__(self, folder: ModelFolder, documents: Sequence[TokenizedExample], tokens_per_microbatch: int) -> None:
        """
        Args:
            folder: of the base, whose weights are read again for the fp32 copy.
            documents: held-out sequences.
            tokens_per_microbatch: of each evaluation.

        Raises:
            SpecError: there are too few sequences for an interval.
        """
        if len(documents) < LEAST_SEQUENCES:
            raise SpecError(
                f"train.fidelity_at: an interval needs {LEAST_SEQUENCES} validation examples, there is "
                f"{len(documents)}; raise --validation-size"
            )
        self._folder = folder
        self._documents = documents
        self._tokens_per_microbatch = tokens_per_microbatch
        self._before: dict[tuple[str, str], Losses] = {}

    def rows(self, lane: Lane, step: int) -> list[FidelityRow]:
        """One row for each live slot of a bf16 lane and each arithmetic that its kind of weights can be used in."""
        trainable = lane.trainable
        if not trainable.slots:
            return []
        if isinstance(trainable, AdapterBank):
            found = self._of_bank(lane.model, trainable, step)
        else:
            found = self._of_full(lane.model, trainable, step, updates=lane.optimizers[trainable.slot].updates)
        release_freed_memory(lane.model.device)
        return found

    def _of_bank(self, model: CausalLM, bank: AdapterBank, step: int) -> list[FidelityRow]:
        exact, exact_bank = with_bank(cast_parameters(self._bf16_base(model), torch.float32))
        merged = CausalLM(self._bf16_base(model))
        before: dict[str, Losses] = {}
        after: dict[str, dict[str, Losses]] = {slot: {} for slot in bank.slots}
        for arithmetic in ARITHMETICS:
            with bank.computing(arithmetic):
                before[arithmetic] = self._once(BASE, arithmetic, partial(self._losses, model, BASE))
                held = evaluate(model, self._documents, bank.slots, self._tokens_per_microbatch)
            for slot in bank.slots:
                after[slot][arithmetic] = held[slot].by_example
        # The base lies on bf16's grid, so that merging nothing leaves it as it is, whatever the rounding.
        unmerged = self._once(BASE, "merged", partial(self._losses, merged, BASE))
        before |= {f"merged {rounding}": unmerged for rounding in ROUNDINGS}
        before[FP32] = self._once(BASE, FP32, partial(self._losses, exact, BASE))
        rows: list[FidelityRow] = []
        for slot in bank.slots:
            weights = bank.weights[slot]
            # One at a time: the copy then holds the masters of one adapter beside its weights.
            exact_bank.join(slot, weights.spec)
            for own, theirs in zip(exact_bank.blocks(slot), bank.blocks(slot), strict=True):
                own.value.copy_(theirs.value)
            exact_bank.publish(slot)
            moved: dict[str, float] = {}
            for rounding in ROUNDINGS:
                name = f"merged {rounding}"
                moved[name] = _merge(merged.model, exact_bank, weights, rounding, step)
                after[slot][name] = self._losses(merged, slot)
            _unmerge(merged.model, exact_bank, weights)
            after[slot][FP32] = self._losses(exact, slot)
            exact_bank.leave(slot)
            rows += self._compared(slot, step, before, after[slot], moved)
        return rows

    def _of_full(self, model: CausalLM, full: FullParameters, step: int, *, updates: int) -> list[FidelityRow]:
        slot = full.slot
        exact = CausalLM(load_start(self._folder, full.spec, device=model.device))
        weights = dict(exact.model.named_parameters())
        before = {FP32: self._once(slot, FP32, partial(self._losses, exact, slot))}
        after: dict[str, Losses] = {}
        moved: dict[str, float] = {}

        def untrained(rounding: Rounding) -> Losses:
            full.compute_with(weights, rounding=rounding, step=0)
            return self._losses(model, slot)

        for rounding in ROUNDINGS:
            name = f"copy {rounding}"
            before[name] = self._once(slot, name, partial(untrained, rounding))
            full.compute_with(full.masters, rounding=rounding, step=updates)
            after[name] = self._losses(model, slot)
            moved[name] = full.num_moved(weights) / full.num_parameters
        full.publish(slot, updates)
        for name, master in full.masters.items():
            weights[name].data.copy_(master)
        after[FP32] = self._losses(exact, slot)
        return self._compared(slot, step, before, after, moved)

    def _compared(
        self,
        slot: str,
        step: int,
        before: Mapping[str, Losses],
        after: Mapping[str, Losses],
        moved: Mapping[str, float],
    ) -> list[FidelityRow]:
        """Every arithmetic against fp32; nothing where the update moves no loss yet."""
        if before[FP32] == after[FP32]:
            return []
        tokens = [example.num_completion_tokens for example in self._documents]
        rows: list[FidelityRow] = []
        for name in after:
            if name == FP32:
                continue
            found = forward_fidelity(
                before_fp32=before[FP32],
                after_fp32=after[FP32],
                before=before[name],
                after=after[name],
                tokens=tokens,
            )
            rows.append(
                FidelityRow(
                    step=step,
                    slot=slot,
                    arithmetic=name,
                    fidelity=found.estimate,
                    low=found.low,
                    high=found.high,
                    fp32_drop=found.fp32_drop,
                    drop=(sum(before[name]) - sum(after[name])) / sum(tokens),
                    sequences=len(tokens),
                    moved=moved.get(name),
                )
            )
        return rows

    def _once(self, slot: str, name: str, measured: Callable[[], Losses]) -> Losses:
        """Losses before training, which stay as they are."""
        if (slot, name) not in self._before:
            self._before[slot, name] = measured()
        return self._before[slot, name]

    def _losses(self, model: CausalLM, slot: str) -> Losses:
        return evaluate(model, self._documents, (slot,), self._tokens_per_microbatch)[slot].by_example

    def _bf16_base(self, beside: CausalLM) -> nn.Module:
        return load_module(self._folder, dtype=torch.bfloat16, device=beside.device)


@torch.no_grad()
def _merge(model: nn.Module, exact: AdapterBank, weights: SlotWeights, rounding: Rounding, step: int) -> float:
    """Put W + (alpha / r) B A, rounded once, in place of W in a bf16 model; returns the share of these that moved.

    Args:
        model: without adapters.
        exact: whose layers hold W in fp32.
        weights: the adapter.
        rounding: of each sum.
        step: of the random bits.
    """
    num_moved = num_weights = 0
    for site, a_RD in weights.a_of.items():
        base_FD = exact.sites[site].weight.detach()
        sum_FD = base_FD + weights.spec.scaling * (weights.b_of[site] @ a_RD)
        stream = rounding_stream(weights.spec.init_seed, step, site, base_FD.device)
        merged_FD = rounded_to_bf16(sum_FD, rounding, stream)
        num_moved += int((merged_FD != base_FD).sum())
        num_weights += merged_FD.numel()
        _set_weight(model, site, merged_FD)
    return num_moved / num_weights


def _unmerge(model: nn.Module, exact: AdapterBank, weights: SlotWeights) -> None:
    """The base's own weights again: another adapter may leave these matrices alone."""
    for site in weights.a_of:
        _set_weight(model, site, exact.sites[site].weight.detach().to(torch.bfloat16))


def _set_weight(model: nn.Module, site: str, weight_FD: Tensor) -> None:
    """A tied head becomes a matrix of its own; the embedding is no part of what is merged."""
    cast(Any, model.get_submodule(site)).weight = nn.Parameter(weight_FD.contiguous(), requires_grad=False)
