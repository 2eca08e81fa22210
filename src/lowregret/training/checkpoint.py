"""Saves and restores a run's state, bitwise: masters, moments, update counts, retired slots, step.

Tensors go into safetensors, the rest into JSON; the run directory adds checksums and makes each checkpoint atomic.
Data order is a function of (seed, step), random rounding one of (seed, updates): nothing else needs saving.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowregret.errors import CheckpointError
from lowregret.store.run import RunDirectory
from lowregret.training.optimizer import AdamW
from lowregret.training.state import Lane, RunState


def resume(run: RunDirectory, state: RunState, notify: Callable[[str], None]) -> bool:
    """Load the latest good checkpoint and cut the logs back to it; False where the run starts at step 0.

    Args:
        notify: told of damaged checkpoints that are passed over, and where it goes on.
    """
    latest = run.latest_checkpoint(on_skip=notify)
    run.truncate_logs(-1 if latest is None else latest[0])
    if latest is None:
        return False
    load_checkpoint(state, latest[1])
    notify(f"resuming after step {state.step} of {run.plan.steps}")
    return True


def keep(run: RunDirectory, state: RunState) -> None:
    """Save the state after this step; the run directory makes it atomic."""
    with run.writing_checkpoint(state.step) as folder:
        save_checkpoint(state, folder)


def save_checkpoint(state: RunState, folder: Path) -> None:
    """Write `state.json` and one safetensors file a slot into an existing folder."""
    slots = {}
    for lane in state.lanes:
        for slot, optimizer in lane.optimizers.items():
            slots[slot] = {"updates": optimizer.updates, "live": slot in lane.live}
            save_file(_slot_tensors(lane, slot, optimizer), folder / f"{slot}.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": state.step, "slots": slots}))


def load_checkpoint(state: RunState, folder: Path) -> None:
    """Bring a freshly built state to where the checkpoint was.

    Raises:
        CheckpointError: the checkpoint holds other slots or shapes than the run.
    """
    record = json.loads((folder / "state.json").read_text())
    known = {slot for lane in state.lanes for slot in lane.optimizers}
    if set(record["slots"]) != known:
        raise CheckpointError(f"{folder} holds the slots {sorted(record['slots'])}, the run has {sorted(known)}")
    state.step = int(record["step"])
    for lane in state.lanes:
        for slot, optimizer in lane.optimizers.items():
            optimizer.updates = int(record["slots"][slot]["updates"])
            saved = load_file(folder / f"{slot}.safetensors")
            _copy_into(_slot_tensors(lane, slot, optimizer), saved, folder)
            if not record["slots"][slot]["live"]:
                lane.trainable.retire(slot)
            elif optimizer.updates:
                lane.trainable.publish(slot, optimizer.updates)


def read_masters(folder: Path, slot: str) -> dict[str, Tensor]:
    """The fp32 masters of one slot in a checkpoint, by parameter name."""
    tensors = load_file(folder / f"{slot}.safetensors")
    return {name.removesuffix(".value"): value for name, value in tensors.items() if name.endswith(".value")}


def _slot_tensors(lane: Lane, slot: str, optimizer: AdamW) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for block in lane.trainable.blocks(slot):
        tensors[f"{block.name}.value"] = block.value
        tensors[f"{block.name}.first"] = optimizer.moments[block.name].first
        tensors[f"{block.name}.second"] = optimizer.moments[block.name].second
    return tensors


@torch.no_grad()
def _copy_into(targets: dict[str, Tensor], saved: dict[str, Tensor], folder: Path) -> None:
    if targets.keys() != saved.keys() or any(targets[key].shape != saved[key].shape for key in targets):
        raise CheckpointError(f"{folder} does not fit this model and spec; resume with the spec that wrote it")
    for key, target in targets.items():
        target.copy_(saved[key])
