"""The adapters of a finished run, in PEFT layout."""

from __future__ import annotations

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.peft_format import write_adapter
from lowregret.models.locate import ModelFolder
from lowregret.store.run import RunDirectory
from lowregret.training.state import RunState


def write_adapters(run: RunDirectory, state: RunState, model: ModelFolder) -> None:
    """Every LoRA slot that lived in PEFT layout under `adapters/`; diverged ones are left out."""
    for lane in state.lanes:
        if isinstance(lane.trainable, AdapterBank):
            for slot in lane.live:
                write_adapter(lane.trainable, slot, run.adapter_folder(slot), base_model=model.name)
