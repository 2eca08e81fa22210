"""What a run of RL found: one row a slot, and a verdict in plain words.

Guarantees: the best slot is chosen by the validation split and reported on the test split; a rise within the margin is
called none; the accuracy of the last step is the result, and the highest one stands beside it only to show a collapse;
everything comes from the run directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowregret.report.findings import Verdict, count_parameters, listed, rank_of, slot_order
from lowregret.specs import RunSpec
from lowregret.specs.rl import COLLAPSED
from lowregret.store import RunDirectory
from lowregret.store.rows import AccuracyRow, PolicyRow

MARGIN = 0.02
"""Accuracy within which two slots count as equal: that of the plateau in science.md, section 4."""


@dataclass(frozen=True, kw_only=True)
class AccuracyFinding:
    """How one slot did on held-out problems.

    >>> found = AccuracyFinding(slot="r1", rank=1, lr=3e-3, num_parameters=10, before=0.4, after=0.9, best=0.95,
    ...     validation=0.9, bits=15.0, capacity=20.0)
    >>> found.rise, found.method, found.ended
    (0.5, 'LoRA, rank 1', None)
    """

    slot: str
    rank: int | None
    """None for full fine-tuning."""
    lr: float | None
    """Learning rate of A."""
    num_parameters: int | None
    """Parameters of the adapter as written; None where none was written (yet)."""
    before: float | None
    """Test accuracy before training."""
    after: float | None
    """Last test accuracy; None where the slot diverged or was not evaluated."""
    best: float | None
    """The highest of all evaluations on the test split: biased upwards."""
    validation: float | None
    """Last validation accuracy, by which the best slot is chosen."""
    bits: float
    """Upper bound on the bits in the rewards that it learned from so far."""
    capacity: float | None
    """Bits that its parameters hold."""
    diverged: bool = False
    """Retired because a number was not finite."""

    @property
    def collapsed(self) -> bool:
        """It stands far below its best."""
        return None not in (self.after, self.best) and (self.after or 0.0) < COLLAPSED * (self.best or 0.0)

    @property
    def rise(self) -> float | None:
        """How far the test accuracy rose."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def method(self) -> str:
        return "full fine-tuning" if self.rank is None else f"LoRA, rank {self.rank}"

    @property
    def ended(self) -> str | None:
        """How it went wrong, in a word; None where it did not."""
        return "diverged" if self.diverged else "collapsed" if self.collapsed else None


def accuracy_findings(run: RunDirectory) -> tuple[AccuracyFinding, ...]:
    """One finding a slot, by rank, full fine-tuning last."""
    plan, policy = run.plan, run.read_policy()
    rows = judged_rows(run.read_accuracy(), plan.spec)
    summary = (run.summary or {}).get("slots", {})
    ended = _retired(policy) if not summary else {name for name, slot in summary.items() if slot["diverged"]}
    # A kill between the lines of one evaluation leaves it for some slots only; all are compared at one step.
    slots = sorted(plan.spec.slots, key=slot_order)
    lasts = [max((r.step for r in rows if r.slot == s.name), default=0) for s in slots if s.name not in ended]
    reached = min(lasts, default=0)
    information = plan.information
    found: list[AccuracyFinding] = []
    for slot in slots:
        own = [row for row in rows if row.slot == slot.name]
        judged = slot.name not in ended and reached > 0
        number = count_parameters(run.adapter_folder(slot.name) / "adapter_model.safetensors")
        holds = None if number is None or information is None else number * information.bits_per_parameter
        found.append(
            AccuracyFinding(
                slot=slot.name,
                rank=rank_of(slot),
                lr=slot.optim.lr,
                num_parameters=number,
                before=_at(own, "test", 0),
                after=_at(own, "test", reached) if judged else None,
                best=max((row.accuracy for row in own if row.split == "test"), default=None),
                validation=_at(own, "validation", reached) if judged else None,
                bits=sum(row.bits for row in policy if row.slot == slot.name),
                capacity=holds,
                diverged=slot.name in ended,
            )
        )
    return tuple(found)


def judge(findings: Sequence[AccuracyFinding]) -> Verdict:
    """The verdict over the slots of one run."""
    usable = [f for f in findings if f.validation is not None and f.rise is not None]
    if not usable:
        return Verdict(improved=False, best=None, text="No held-out accuracy has been measured after training yet.")
    ranked = sorted(usable, key=lambda f: -(f.validation or 0.0))
    best = ranked[0]
    assert best.rise is not None
    change = f"from {best.before:.3f} to {best.after:.3f}"
    rose = best.rise > MARGIN
    if rose:
        text = f"Held-out accuracy rose {change} with {best.slot}"
    elif best.rise < -MARGIN:
        text = f"Held-out accuracy fell {change} with {best.slot}"
    else:
        text = f"Held-out accuracy did not move by more than {MARGIN} ({change}) with {best.slot}"
    text += "." if len(ranked) == 1 else f", the best of {len(ranked)} slots on the validation split."
    near = [f.slot for f in ranked[1:] if (best.validation or 0.0) - (f.validation or 0.0) <= MARGIN]
    if near:
        text += f" {listed(near)} {'is' if len(near) == 1 else 'are'} within {MARGIN} of it."
    for how in ("diverged", "collapsed"):
        if named := [f.slot for f in findings if f.ended == how]:
            text += f" {listed(named)} {how}."
    return Verdict(improved=rose, best=best.slot, text=text)


def judged_rows(rows: Sequence[AccuracyRow], spec: RunSpec) -> list[AccuracyRow]:
    """Those of the answers that the run counts: greedy, or drawn."""
    assert spec.rl is not None
    return [row for row in rows if row.how == spec.rl.judge_by]


def _retired(policy: Sequence[PolicyRow]) -> set[str]:
    """Slots of a run under way that have no line any more while others went on."""
    last: dict[str, int] = {}
    for row in policy:
        last[row.slot] = row.step
    final = max(last.values(), default=0)
    return {slot for slot in last if last[slot] < final}


def _at(rows: Sequence[AccuracyRow], split: str, step: int) -> float | None:
    return next((row.accuracy for row in reversed(rows) if (row.split, row.step) == (split, step)), None)
