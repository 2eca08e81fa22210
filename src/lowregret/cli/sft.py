"""`lowregret sft`: what supervised training adds to `session`. The training itself is `training.sft.train`."""

from __future__ import annotations

from typing import Any

from lowregret.cli.bases import ensure_bases
from lowregret.cli.flags import Sft
from lowregret.cli.prepare import Notify, tokenize
from lowregret.cli.session import Found, Slots, carry_out
from lowregret.data.load import load_eval_data
from lowregret.data.tokenizer import TextTokenizer
from lowregret.models.locate import locate_model
from lowregret.specs import RunSpec
from lowregret.store import RunDirectory
from lowregret.training.progress import ProgressListener

MIN_DROP = 0.01
"""Nats by which `--must-improve` wants the test NLL to fall: far above what rounding or a lucky batch moves."""


def sft(command: Sft) -> int:
    """Train; 0 done, 1 the result fell short, 130 stopped with a checkpoint."""
    return carry_out(command, _find, _shortfall)


def _find(spec: RunSpec, notify: Notify) -> Found:
    """Model and data, in tokens."""
    ensure_bases([spec.model], notify=notify)
    model = locate_model(spec.model, notify=notify)
    tokenizer = TextTokenizer.from_folder(model.path)
    data = tokenize(spec.data, tokenizer, notify)
    further = {source: load_eval_data(source, spec.data, tokenizer) for source in spec.train.also_eval}

    def train(run: RunDirectory, listener: ProgressListener) -> None:
        from lowregret.training import sft as training

        training.train(run, model=model, data=data, listener=listener, also_eval=further)

    return Found(model=model, data=data, train=train)


def _shortfall(slots: Slots) -> str | None:
    missed = [name for name, slot in slots.items() if not _improved(slot)]
    return f"the test NLL did not fall by {MIN_DROP} nats: {', '.join(missed)}" if missed else None


def _improved(slot: dict[str, Any]) -> bool:
    before, after = slot["initial_nll"]["test"], slot["final_nll"].get("test")
    return None not in (before, after) and after <= before - MIN_DROP
