"""What a run found: one row a slot, and a verdict in plain words.

Guarantees: the best slot is chosen by the validation split and reported on the test split; differences under the
margin are called no difference; everything comes from the run directory.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowregret.specs import AdapterSpec, SlotSpec
from lowregret.store import EvalRow, MetricRow, RunDirectory

BASE = "base"
"""Slot name of the model without any adapter in the logs."""

MARGIN = 0.005
"""Nats per token under which two losses count as equal: the equivalence margin of science.md, section 4."""


@dataclass(frozen=True, kw_only=True)
class SlotFinding:
    """How one slot did on held-out data.

    >>> found = SlotFinding(slot="r8", rank=8, lr=2e-4, num_parameters=10, before=2.0, after=1.5, validation=1.6)
    >>> found.drop, found.method
    (0.5, 'LoRA, rank 8')
    """

    slot: str
    rank: int | None
    """None for full fine-tuning."""
    lr: float | None
    """Learning rate of A."""
    num_parameters: int | None
    """Parameters of the adapter as written; None where none was written (yet)."""
    before: float | None
    """Test NLL before training, nats per completion token."""
    after: float | None
    """Last test NLL; None where the slot diverged or was not evaluated."""
    validation: float | None
    """Last validation NLL, by which the best slot is chosen."""
    diverged: bool = False
    """Retired because its loss was not finite."""
    stopped: bool = False
    """Stopped early because another learning rate was surely better; it has no final loss and did not diverge."""

    @property
    def drop(self) -> float | None:
        """How far the test NLL fell, nats per token."""
        return None if self.before is None or self.after is None else self.before - self.after

    @property
    def bits(self) -> float | None:
        """Last test NLL in bits per token."""
        return None if self.after is None else self.after / math.log(2)

    @property
    def ended(self) -> str | None:
        """Why it has no final loss, in words; None where it trained to the end."""
        return "stopped early" if self.stopped else "diverged" if self.diverged else None

    @property
    def method(self) -> str:
        return "full fine-tuning" if self.rank is None else f"LoRA, rank {self.rank}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to the run's question.

    >>> Verdict(improved=True, best="r8", text="...").improved
    True
    """

    improved: bool
    """Whether the best slot's test NLL fell, or its test accuracy rose, by more than the margin."""
    best: str | None
    """The slot with the lowest validation NLL, or the highest validation accuracy."""
    text: str
    """One or two sentences for the reader."""


def slot_findings(run: RunDirectory) -> tuple[SlotFinding, ...]:
    """One finding a slot, by rank, full fine-tuning last."""
    slots = sorted(run.plan.spec.slots, key=slot_order)
    evals, stopped = run.read_evals(), _stopped(run)
    ended = _ended(run.read_metrics())
    # A kill between the lines of one evaluation leaves it for some slots only; all are compared at one step.
    lasts = [max((r.step for r in evals if r.slot == s.name), default=0) for s in slots if s.name not in ended]
    reached = min(lasts, default=0)
    found: list[SlotFinding] = []
    for slot in slots:
        own = [row for row in evals if row.slot == slot.name]
        judged = slot.name not in ended and reached > 0
        found.append(
            SlotFinding(
                slot=slot.name,
                rank=rank_of(slot),
                lr=slot.optim.lr,
                num_parameters=count_parameters(run.adapter_folder(slot.name) / "adapter_model.safetensors"),
                before=_at(own, "test", 0) or _at(evals, "test", 0, BASE),
                after=_at(own, "test", reached) if judged else None,
                validation=_at(own, "validation", reached) if judged else None,
                diverged=slot.name in ended - stopped,
                stopped=slot.name in stopped,
            )
        )
    return tuple(found)


def judge(findings: Sequence[SlotFinding]) -> Verdict:
    """The verdict over the slots of one run."""
    by_validation = [f for f in findings if f.validation is not None and f.drop is not None]
    usable = by_validation or [f for f in findings if f.drop is not None]
    if not usable:
        return Verdict(improved=False, best=None, text="No held-out loss has been measured after training yet.")
    ranked = sorted(usable, key=lambda f: _score(f))
    best = ranked[0]
    assert best.before is not None
    assert best.after is not None
    assert best.drop is not None
    fell = best.drop > MARGIN
    change = f"from {best.before:.3f} to {best.after:.3f} nats per token"
    if fell:
        text = f"Held-out NLL fell {change} ({best.drop:.3f} less, {best.drop / best.before:.0%}) with {best.slot}"
    elif best.drop < -MARGIN:
        text = f"Held-out NLL rose {change} with {best.slot}"
    else:
        text = f"Held-out NLL did not move by more than {MARGIN} nats ({change}) with {best.slot}"
    text += _compare(ranked, chosen=bool(by_validation))
    if diverged := [f.slot for f in findings if f.ended == "diverged"]:
        text += f" {listed(diverged)} diverged."
    if stopped := [f.slot for f in findings if f.ended == "stopped early"]:
        text += f" {listed(stopped)} {'was' if len(stopped) == 1 else 'were'} stopped early."
    return Verdict(improved=fell, best=best.slot, text=text)


def slot_order(slot: SlotSpec) -> tuple[float, float, str]:
    """Sort key: by rank, then learning rate; full fine-tuning last."""
    rank = rank_of(slot)
    return (math.inf if rank is None else rank, slot.optim.lr or 0.0, slot.name)


def rank_of(slot: SlotSpec) -> int | None:
    """The adapter's rank, or None for full fine-tuning."""
    return slot.weights.rank if isinstance(slot.weights, AdapterSpec) else None


def _stopped(run: RunDirectory) -> set[str]:
    """Slots that a better learning rate ended early; known once the run is finished."""
    slots = (run.summary or {}).get("slots", {})
    return {name for name, slot in slots.items() if slot.get("stopped")}


def _ended(metrics: Sequence[MetricRow]) -> set[str]:
    """Slots that were retired: a loss that is not finite, or no line any more while others went on."""
    last: dict[str, int] = {}
    for row in metrics:
        last[row.slot] = row.step
    final = max(last.values(), default=0)
    return {row.slot for row in metrics if not math.isfinite(row.loss)} | {s for s in last if last[s] < final}


def _score(finding: SlotFinding) -> float:
    nll = finding.after if finding.validation is None else finding.validation
    assert nll is not None
    return nll


def _compare(ranked: Sequence[SlotFinding], *, chosen: bool) -> str:
    """How the best slot stands to the others."""
    if len(ranked) == 1:
        return "."
    split = "validation" if chosen else "test"
    near = [f.slot for f in ranked[1:] if _score(f) - _score(ranked[0]) <= MARGIN]
    text = f", the best of {len(ranked)} slots on the {split} split."
    if near:
        text += f" {listed(near)} {'is' if len(near) == 1 else 'are'} within {MARGIN} nats of it."
    return text


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _at(rows: Sequence[EvalRow], split: str, step: int, slot: str | None = None) -> float | None:
    found = [r.nll for r in rows if r.split == split and r.step == step and slot in (None, r.slot)]
    return found[-1] if found and math.isfinite(found[-1]) else None


def count_parameters(path: Path) -> int | None:
    """Elements of all tensors of a safetensors file, from its header."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, dict[str, list[int]]] = json.loads(file.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
