"""Rules about how much is learned: capacity, overfitting, too few or too large steps, and what was left out."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lowregret.planner.information import judge_information
from lowregret.planner.targets import select
from lowregret.planner.warn import FEW_STEPS, LARGE_BATCH, alpha_is_tied, is_attention_only
from lowregret.specs import AdapterSpec, SlotSpec
from lowregret.studies.diagnose.curves import drop, last_doubling, lowest, median_over, widening
from lowregret.studies.diagnose.symptom import Severity, Symptom
from lowregret.studies.diagnose.view import MARGIN, RunView, Series

FLAT = 0.05
"""Share of the drop in the last doubling of steps, under which a curve has come to rest."""
LARGE_RISE = 0.05
"""Nats a token of rise after the minimum from which overfitting is serious."""
WORSE_THAN_CHANCE = 0.5
"""Nats over ln(vocabulary) at which a base gives the data's tokens less than an even guess would."""


def capacity_exhausted(view: RunView) -> Iterator[Symptom]:
    """A rank that falls behind the largest as training goes on, or that can't hold the data and has come to rest."""
    best, finals = _best_of_rank(view), view.finals()
    largest = max(best, default=0)
    for rank, slot in sorted(best.items()):
        if any(finals[best[r].name] < finals[slot.name] - MARGIN for r in best if r < rank):
            continue  # A smaller rank did better, so it is something else than capacity.
        curve = view.held_out(slot.name)
        under, verdict = _capacity(view, slot)
        gaps = _gaps(view, rank, largest)
        grown = widening([s for s, _ in gaps], [gap for _, gap in gaps]) if rank < largest and gaps else 0.0
        behind = grown > MARGIN and gaps[-1][1] > MARGIN and view.last_step >= FEW_STEPS
        flat = drop(curve) > MARGIN and last_doubling(curve) < FLAT
        if not behind and not (under and flat):
            continue
        said: list[str] = []
        if behind:
            step, gap = gaps[-1]
            said.append(
                f"rank {rank} is {gap:.3f} nats behind rank {largest} at step {step}, "
                f"{grown:.3f} of it since step {_half(step)}"
            )
        if flat:
            said.append(f"only {last_doubling(curve):.0%} of its drop came in the last half of the steps")
        if under:
            said.append(f"the planner's verdict is UNDERCAPACITY ({verdict})")
        severity: Severity = "serious" if under else "warning"
        yield Symptom(
            rule="capacity-exhausted",
            where=slot.name,
            severity=severity,
            seen="; ".join(said),
            why="an adapter that is full leaves the curve of larger ranks and does not come back",
            remedy=_larger_rank(view, slot, largest if behind else None),
        )


def overfitted(view: RunView) -> Iterator[Symptom]:
    """Held-out loss rises after its minimum while the training loss goes on falling, on examples seen before."""
    if view.epochs <= 1:
        return
    for slot in view.spec.slots:
        curve, training = view.held_out(slot.name), view.training(slot.name)
        if slot.name in view.retired or len(curve) < 3 or not training:
            continue
        (step, least), (last, final) = lowest(curve), curve[-1]
        span = (last - step) / 2
        before, after = (
            median_over(training, max(0, step - span), step + span),
            median_over(training, last - span, last),
        )
        if final - least <= MARGIN or before is None or after is None or after > before - MARGIN:
            continue
        yield Symptom(
            rule="overfitted",
            where=slot.name,
            severity="serious" if final - least > LARGE_RISE else "warning",
            seen=(
                f"validation loss was lowest at step {step} ({least:.3f} nats) and rose to {final:.3f} at step {last}, "
                f"after {view.epochs:.1f} passes over the data, while the training loss fell from "
                f"{before:.3f} to {after:.3f}"
            ),
            why="it learns the training examples by heart; the last adapter is worse than an earlier one",
            remedy=f"--steps {max(1, step)}, or --epochs 1 and more data",
        )


def unfinished(view: RunView) -> Iterator[Symptom]:
    """A run that has not come to its last step."""
    if view.last_step < view.plan.steps and len(view.retired) < len(view.spec.slots):
        yield Symptom(
            rule="unfinished",
            where="run",
            severity="note",
            seen=f"its logs end at step {view.last_step} of {view.plan.steps}",
            why="what is found here is of the run so far",
            remedy="lowregret sft --resume RUN, unless it is still running",
        )


def few_steps(view: RunView) -> Iterator[Symptom]:
    """Fewer steps than Adam and a learning rate need to settle."""
    if view.plan.steps >= FEW_STEPS:
        return
    falling = [
        s.name
        for s in view.spec.slots
        if len(view.held_out(s.name)) > 2 and last_doubling(view.held_out(s.name)) > FLAT
    ]
    batch = view.spec.train.batch_size
    smaller = max(1, batch * view.plan.steps // FEW_STEPS)
    more = (
        f"--batch-size {smaller}, or more --epochs" if smaller < batch else f"--steps {2 * FEW_STEPS}, or more --epochs"
    )
    yield Symptom(
        rule="few-steps",
        where="run",
        severity="warning",
        seen=f"{view.plan.steps} steps of {batch} sequences"
        + (f"; {', '.join(falling)} still fell at the end" if falling else ""),
        why=f"under {FEW_STEPS} steps a wrong learning rate costs most, and LoRA's best one is higher",
        remedy=more,
    )


def large_batch(view: RunView) -> Iterator[Symptom]:
    """A batch for which LoRA pays more than full fine-tuning."""
    batch = view.spec.train.batch_size
    if not view.adapters or batch <= LARGE_BATCH:
        return
    yield Symptom(
        rule="large-batch",
        where="run",
        severity="warning",
        seen=f"{batch} sequences a step, {view.plan.steps} steps",
        why="LoRA loses more by a large batch than full fine-tuning does, and a larger rank does not make up for it",
        remedy=f"--batch-size {LARGE_BATCH // 2} or less, at the planner's --lr for it",
    )


def attention_only(view: RunView) -> Iterator[Symptom]:
    """Adapters that leave every MLP alone."""
    for slot, adapter in view.adapters:
        named = adapter.targets == ("attention",)
        if view.shape is not None:
            named = is_attention_only(select(view.shape, adapter.targets, unembed=adapter.unembed))
        if named:
            yield Symptom(
                rule="attention-only",
                where=slot.name,
                severity="warning",
                seen=f"its targets are {', '.join(adapter.targets)}",
                why="attention-only adapters are clearly worse at equal parameters; MLPs hold most of what is learned",
                remedy="--targets all (or mlp)",
            )


def tied_alpha(view: RunView) -> Iterator[Symptom]:
    """Alpha in proportion to rank."""
    adapters = [adapter for _, adapter in view.adapters]
    if not alpha_is_tied(adapters):
        return
    pairs = sorted({(adapter.rank, adapter.alpha) for adapter in adapters})
    yield Symptom(
        rule="alpha-tied-to-rank",
        where="run",
        severity="warning",
        seen="alpha is " + ", ".join(f"{alpha:g} at rank {rank}" for rank, alpha in pairs),
        why="the best learning rate then falls with rank (r^-0.4 to r^-0.5), so ranks are not comparable at one rate",
        remedy="--alpha 32 at every rank, and the planner's --lr",
    )


def unembedding_left_out(view: RunView) -> Iterator[Symptom]:
    """Adapting the unembedding helped beside, or the base gives the data's tokens less than chance."""
    finals = view.finals()
    for slot, adapter in view.adapters:
        if adapter.unembed or slot.name not in finals:
            continue
        twins = [
            other.name
            for other, its in view.adapters
            if its.unembed and (its.rank, its.alpha, its.targets) == (adapter.rank, adapter.alpha, adapter.targets)
        ]
        better = [(finals[twin], twin) for twin in twins if twin in finals]
        before = view.held_out(slot.name)[0][1]
        chance = math.inf if view.shape is None else math.log(view.shape.vocab_size)
        if better and finals[slot.name] - min(better)[0] > MARGIN:
            nll, twin = min(better)
            seen = f"{twin}, which adapts the unembedding too, ends {finals[slot.name] - nll:.3f} nats lower"
        elif before > chance + WORSE_THAN_CHANCE:
            seen = (
                f"before training the data had {before:.2f} nats a token, more than the {chance:.2f} of an even "
                "guess over the vocabulary: the base holds these tokens to be next to impossible"
            )
        else:
            continue
        yield Symptom(
            rule="unembedding-left-out",
            where=slot.name,
            severity="warning",
            seen=seen,
            why="where the vocabulary shifts, rows of the unembedding must move that no other layer can stand in for",
            remedy="--unembed",
        )


def _best_of_rank(view: RunView) -> dict[int, SlotSpec]:
    """The slot of each rank with the lowest last validation loss, among adapters of all layers alike."""
    finals, best = view.finals(), dict[int, SlotSpec]()
    for slot, adapter in view.adapters:
        if slot.name in finals and (adapter.rank not in best or finals[slot.name] < finals[best[adapter.rank].name]):
            best[adapter.rank] = slot
    return best


def _gaps(view: RunView, rank: int, largest: int) -> Series:
    """How far a rank lies behind the largest at each step, each at its best rate there (the paper's figure 1)."""
    curves = {r: _least(view, r) for r in (rank, largest)}
    steps = sorted(set(curves[rank]) & set(curves[largest]) - {0})
    return tuple((step, curves[rank][step] - curves[largest][step]) for step in steps)


def _least(view: RunView, rank: int) -> dict[int, float]:
    least: dict[int, float] = {}
    for slot, adapter in view.adapters:
        if adapter.rank == rank and slot.name not in view.retired:
            for step, nll in view.held_out(slot.name):
                least[step] = min(nll, least.get(step, math.inf))
    return least


def _capacity(view: RunView, slot: SlotSpec) -> tuple[bool, str]:
    """Whether the planner finds the rank too small, and why; unknown counts as no."""
    if view.shape is None or view.plan.information is None or not isinstance(slot.weights, AdapterSpec):
        return False, ""
    matrices = select(view.shape, slot.weights.targets, unembed=slot.weights.unembed)
    found = judge_information(matrices, slot.weights.rank, view.plan.information)
    return found.status == "UNDERCAPACITY", found.reason


def _larger_rank(view: RunView, slot: SlotSpec, seen: int | None) -> str:
    assert isinstance(slot.weights, AdapterSpec)
    enough = None
    if view.shape is not None and view.plan.information is not None:
        matrices = select(view.shape, slot.weights.targets, unembed=slot.weights.unembed)
        enough = judge_information(matrices, slot.weights.rank, view.plan.information).smallest_rank
    if enough is None and seen is None and view.shape is not None:
        return "no rank holds this data; --full, or a larger base"
    return f"--rank {max(enough or 0, seen or 0, 2 * slot.weights.rank if not enough and not seen else 0)}"


def _half(step: int) -> int:
    return math.ceil(math.sqrt(step))
