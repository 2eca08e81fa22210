"""Rules about learning rates: too low, diverged, unstable, or best at the edge of those that were tried."""

from __future__ import annotations

from collections.abc import Iterator

from lowregret.planner.learning_rate import full_rate
from lowregret.planner.resolve import slot_rate
from lowregret.specs import AdapterSpec, Arm, SlotSpec
from lowregret.studies.best_rate import grid_edge
from lowregret.studies.diagnose.curves import drop, last_doubling, lowest, median_over, spikes
from lowregret.studies.diagnose.symptom import Symptom
from lowregret.studies.diagnose.view import MARGIN, RunView
from lowregret.studies.outcome import Outcome
from lowregret.studies.surface import Refused, surfaces

NEAR_FULL = 3.0
"""A LoRA rate up to this many times FullFT's counts as FullFT's: the best one lies 10 to 15 times above it."""
BELOW_OWN = 2.0
"""And it must lie this far below the planner's LoRA rate, which a large alpha lowers too."""
SLOW = 0.3
"""Share of the drop in the last doubling of steps, from which a loss falls with steps and not with their logarithm."""
LEAST_RATES = 3
"""Of two rates one is always the edge: that alone is no failure."""
LEAST_SPIKE = 0.25
"""Nats a token by which a training loss must jump to be called a spike."""
LEAST_SPIKES = 2
LARGE_RISE = 0.05
"""Nats a token of rise after the minimum that the noise of small steps does not explain."""
SPIKING_NORM = 5.0
"""Times its neighbours' median: a gradient norm that is a spike."""


def at_full_scale(view: RunView) -> Iterator[Symptom]:
    """LoRA trained at the rate of full fine-tuning, and learning slowly."""
    assert view.shape is not None
    train = view.spec.train
    full = full_rate(
        view.shape.model_type,
        view.shape.hidden_size,
        steps=view.plan.steps,
        schedule=train.schedule.kind,
        batch_size=train.batch_size,
        task=view.spec.task,
    )
    for slot, _ in view.adapters:
        own = slot_rate(slot, view.spec, view.shape, view.plan.steps)
        curve, lr = view.held_out(slot.name), slot.optim.lr or own.value
        low = lr <= NEAR_FULL * full.value and lr <= own.value / BELOW_OWN
        if not low or len(curve) < 3 or not _slow(view, slot.name):
            continue
        yield Symptom(
            rule="lr-at-full-scale",
            where=slot.name,
            severity="serious",
            seen=(
                f"lr {lr:.2g} is {lr / full.value:.2g} times the planner's rate for full fine-tuning "
                f"({full.value:.2g}), and the held-out loss fell by {drop(curve):.3f} nats, "
                f"{last_doubling(curve):.0%} of it in the last half of the steps"
            ),
            why="LoRA's best rate is about 10 times full fine-tuning's, about 15 times in short runs",
            remedy=f"--lr {own.value:.2g}, or leave --lr out",
        )


def diverged(view: RunView) -> Iterator[Symptom]:
    """A slot whose loss stopped being a number. One rate of several that diverges is how a grid finds its edge."""
    for slot in view.spec.slots:
        if slot.name not in view.retired:
            continue
        step = max((row.step for row in view.metrics if row.slot == slot.name), default=0)
        others = [s for s in view.spec.slots if _same_but_rate(s, slot) and s.name not in view.retired]
        yield Symptom(
            rule="diverged",
            where=slot.name,
            severity="warning" if others else "serious",
            seen=f"it was retired at step {step} of {view.plan.steps}, at lr {slot.optim.lr:.2g}",
            why="its loss or its weights were no longer finite; nothing can be said of this slot",
            remedy=_lower_rate(view, slot),
        )


def rose(view: RunView) -> Iterator[Symptom]:
    """Held-out and training loss ended above where they began, or held-out loss rose while all examples were new."""
    for slot in view.spec.slots:
        curve, training = view.held_out(slot.name), view.training(slot.name)
        if slot.name in view.retired or len(curve) < 2 or not training:
            continue
        # The first training loss was taken before any step; one at a bad rate is up after the first.
        last = training[-1][0]
        early, late = training[0][1], median_over(training, last - max(1.0, last / 4), last)
        assert late is not None
        (start, first), (step, least), final = curve[0], lowest(curve), curve[-1][1]
        damaged = final > first + MARGIN and late >= early - MARGIN
        again = view.epochs <= 1 and final > least + LARGE_RISE
        if not damaged and not again:
            continue
        since, was = (start, first) if damaged else (step, least)
        yield Symptom(
            rule="loss-rose",
            where=slot.name,
            severity="serious" if damaged else "warning",
            seen=f"held-out loss went from {was:.3f} at step {since} to {final:.3f} nats at lr {slot.optim.lr:.2g}, "
            + ("and the training loss did not fall" if damaged else "though no example was seen twice"),
            why="the base is better without what was trained" if damaged else "its steps overshoot",
            remedy=_lower_rate(view, slot),
        )


def unstable(view: RunView) -> Iterator[Symptom]:
    """Spikes of training loss or gradient norm that other slots do not have on the same batches."""
    jumps = {s.name: set(spikes(view.training(s.name), least=LEAST_SPIKE)) for s in view.spec.slots}
    shared = _shared(view, jumps)
    for slot in view.spec.slots:
        own = sorted(jumps[slot.name] - shared)
        norms = view.grad_norms(slot.name)
        middle = median_over(norms, 0, 1e18) or 0.0
        bursts = spikes(norms, least=SPIKING_NORM * middle)
        if len(own) >= LEAST_SPIKES:
            largest = max(loss for step, loss in view.training(slot.name) if step in own)
            seen = f"the training loss jumped at {len(own)} steps ({_first(own)}), up to {largest:.2f} nats"
        elif len(bursts) >= LEAST_SPIKES and not shared:
            seen = f"the gradient norm jumped to over {SPIKING_NORM:g} times its median at {len(bursts)} steps"
        else:
            continue
        yield Symptom(
            rule="unstable",
            where=slot.name,
            severity="warning",
            seen=f"{seen}, at lr {slot.optim.lr:.2g}",
            why="it trains near the rate at which it diverges; part of what it learned is undone at each jump",
            remedy=f"{_lower_rate(view, slot)}, or --warmup {max(1, view.plan.steps // 20)}",
        )


def on_the_edge(view: RunView) -> Iterator[Symptom]:
    """Of the rates tried for one arm the lowest or highest was best."""
    for arm, surface in surfaces(outcomes_of_run(view)).items():
        if surface.num_rates < 2:
            continue
        try:
            edge = grid_edge(surface)
        except Refused:
            continue  # All of them diverged, which has a rule of its own.
        if edge is None:
            continue
        tried = ", ".join(f"{rate:.2g}" for rate in surface.rates)
        flag = "--full-lr" if arm.method == "full" else "--lr"
        best = surface.rates[int(surface.validation[0].argmin())]
        further = {
            "low": f"{flag} {best / 10**0.5:.2g},{best:.2g} too",
            "high": f"{flag} {best:.2g},{best * 10**0.5:.2g} too",
            "diverges": f"{flag} {best * 10**0.25:.2g} too, between it and the one that diverged",
        }[edge]
        yield Symptom(
            rule="lr-on-the-edge",
            where=arm.label,
            severity="note" if surface.num_rates < LEAST_RATES else "warning",
            seen=f"the best of the learning rates {tried} is {best:.2g}, the {_side(edge)} one that trains",
            why="the best rate may lie beyond those that were tried, and comparisons at this one favour other slots",
            remedy=further,
        )


def outcomes_of_run(view: RunView) -> list[Outcome]:
    """Each slot as a finished cell of its arm; slots that were never measured are left out."""
    outcomes: list[Outcome] = []
    for slot in view.spec.slots:
        validation, test = view.held_out(slot.name), dict(view.held_out(slot.name, "test"))
        shared = [(step, nll) for step, nll in validation if step in test]
        if slot.optim.lr is None or len(shared) < 2:
            continue
        outcomes.append(
            Outcome(
                cell=slot.name,
                arm=arm_of(view, slot),
                lr=slot.optim.lr,
                seed=slot.data_seed,
                steps=tuple(step for step, _ in shared),
                validation=tuple(nll for _, nll in shared),
                test=tuple(test[step] for step, _ in shared),
                diverged=slot.name in view.retired,
            )
        )
    return outcomes


def arm_of(view: RunView, slot: SlotSpec) -> Arm:
    """What a slot is but for its learning rate; parameters are not counted, since nothing is compared by them here."""
    weights = slot.weights
    lora = isinstance(weights, AdapterSpec)
    return Arm(
        method="lora" if lora else "full",
        rank=weights.rank if lora else None,
        alpha=weights.alpha if lora else 32.0,
        targets=weights.targets if lora else ("all",),
        params=0,
        batch_size=view.spec.train.batch_size,
        steps=view.plan.steps,
        variant="with the unembedding" if lora and weights.unembed else "",
    )


def _slow(view: RunView, slot: str) -> bool:
    """Hardly moved, or still falling in proportion to steps."""
    curve = view.held_out(slot)
    return abs(drop(curve)) < MARGIN or last_doubling(curve) >= SLOW


def _shared(view: RunView, jumps: dict[str, set[int]]) -> set[int]:
    """Steps at which every slot that saw the same batches jumped: the data did that."""
    seeds = {slot.data_seed for slot in view.spec.slots}
    groups = ([jumps[s.name] for s in view.spec.slots if s.data_seed == seed] for seed in seeds)
    return set[int]().union(*(set[int].intersection(*group) for group in groups if len(group) > 1))


def _same_but_rate(first: SlotSpec, second: SlotSpec) -> bool:
    return first.name != second.name and first.weights == second.weights


def _lower_rate(view: RunView, slot: SlotSpec) -> str:
    flag = "--lr" if isinstance(slot.weights, AdapterSpec) else "--full-lr"
    lower = (slot.optim.lr or 0.0) / 3
    if view.shape is None:
        return f"{flag} {lower:.2g}"
    planned = slot_rate(slot, view.spec, view.shape, view.plan.steps).value
    return f"{flag} {min(lower, planned):.2g} (the planner's is {planned:.2g})"


def _first(steps: list[int]) -> str:
    return ", ".join(str(step) for step in steps[:3]) + (", ..." if len(steps) > 3 else "")


def _side(edge: str) -> str:
    return "lowest" if edge == "low" else "highest"
