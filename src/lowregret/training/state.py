"""What a run holds in memory: models, what trains on them, optimizers, and the step.

All LoRA slots share one lane: one frozen base, one pass. Each full fine-tuning has a lane of its own, since its base
changes. A lane is trained by the same step function either way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.full import FullParameters
from lowregret.models.causal_lm import CausalLM
from lowregret.models.load import DTYPES, cast_parameters, load_module, load_start, with_bank, with_full
from lowregret.models.locate import ModelFolder
from lowregret.specs import AdapterSpec, FullSpec, ResolvedPlan, SlotSpec
from lowregret.training.optimizer import AdamW


@dataclass(kw_only=True)
class Lane:
    """One model and the slots that train on it.

    >>> sorted(Lane.__dataclass_fields__)
    ['model', 'optimizers']
    """

    model: CausalLM
    optimizers: dict[str, AdamW]
    """By slot."""

    @property
    def trainable(self) -> AdapterBank | FullParameters:
        """The bank, or the full weights."""
        assert self.model.trainable is not None
        return self.model.trainable

    @property
    def live(self) -> tuple[str, ...]:
        """Slots that still train."""
        return self.trainable.slots


@dataclass(kw_only=True)
class RunState:
    """Everything that a checkpoint holds, in memory.

    >>> RunState(lanes=(), step=0).step
    0
    """

    lanes: tuple[Lane, ...]
    step: int
    """Optimizer steps done."""

    @property
    def live(self) -> tuple[str, ...]:
        """Slots that still train, in order."""
        return tuple(slot for lane in self.lanes for slot in lane.live)

    def lane_of(self, slot: str) -> Lane:
        """The lane that holds a slot, live or retired."""
        return next(lane for lane in self.lanes if slot in lane.optimizers)


def build_state(plan: ResolvedPlan, folder: ModelFolder, *, notify: Callable[[str], None]) -> RunState:
    """Load the base (once for the bank, once for each full fine-tuning) and make every slot at step 0."""
    torch.set_num_threads(plan.threads)
    dtype, device = DTYPES[plan.dtype], torch.device(plan.device)
    lanes: list[Lane] = []
    adapters = [slot for slot in plan.spec.slots if isinstance(slot.weights, AdapterSpec)]
    if adapters:
        notify(f"loading {folder.name} in {plan.dtype} on {plan.device}")
        lanes.append(_bank_lane(plan, folder, adapters, dtype, device))
    for slot in plan.spec.slots:
        if isinstance(slot.weights, FullSpec):
            notify(f"loading {folder.name} for full fine-tuning, fp32 masters")
            lanes.append(_full_lane(plan, folder, slot, slot.weights, dtype, device))
    return RunState(lanes=tuple(lanes), step=0)


def _bank_lane(
    plan: ResolvedPlan, folder: ModelFolder, slots: list[SlotSpec], dtype: torch.dtype, device: torch.device
) -> Lane:
    model, bank = with_bank(load_module(folder, dtype=dtype, device=device))
    model.use_activation_checkpointing(plan.spec.hardware.activation_checkpointing)
    bank.join_all({slot.name: slot.weights for slot in slots if isinstance(slot.weights, AdapterSpec)})
    return Lane(model=model, optimizers={slot.name: AdamW(slot.optim, bank.blocks(slot.name)) for slot in slots})


def _full_lane(
    plan: ResolvedPlan,
    folder: ModelFolder,
    slot: SlotSpec,
    weights: FullSpec,
    dtype: torch.dtype,
    device: torch.device,
) -> Lane:
    """Masters come from the file's own precision, not from a rounded copy, unless the spec asks for one."""
    module = load_start(folder, weights, device=device)
    masters = {name: p.detach() for name, p in module.named_parameters()} if dtype == torch.bfloat16 else None
    model, full = with_full(cast_parameters(module, dtype), weights, slot=slot.name, masters=masters)
    model.use_activation_checkpointing(plan.spec.hardware.activation_checkpointing)
    return Lane(model=model, optimizers={slot.name: AdamW(slot.optim, full.blocks(slot.name))})
