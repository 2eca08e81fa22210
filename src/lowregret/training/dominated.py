"""Which slots of a learning-rate sweep need not be finished: those that surely won't be near the best. Pure.

A slot is dominated from a third of the run on, if its validation loss has fallen by less than half as much as that of
the best slot at the same step, and its learning rate lies more than two spacings above the best's or four below: a fit
needs two neighbours, and the best rate falls by up to two spacings until the end. Error rate, over 1,000 simulated arms
whose rates trade speed for a noise floor (tests): the best at the end was never among the stopped (below 0.3 % at
95 %), one within two spacings of it in 0.1 %, while a quarter of a nine-rate grid was stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lowregret.specs import SlotSpec

EARLIEST_SHARE = 1 / 3
"""Of the run, before which no slot is called dominated: low rates start slowly."""
LEAST_DROP = 0.5
"""Share of the best slot's gain that a slot must have to go on."""
NEIGHBOURS = 2
"""Spacings on either side of the best that a fit needs (science.md, section 4)."""
DRIFT = 2
"""Spacings by which the best rate may still fall until the end: 3 times the steps at steps^-1, the strongest drift."""
SAME = 0.25
"""Share of a spacing by which two rates may be off and count as one."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One slot of a sweep, as far as it has come.

    >>> Contender(name="a", lr=1e-3, steps=(0, 10), losses=(3.0, 2.5)).losses[-1]
    2.5
    """

    name: str
    lr: float
    steps: tuple[int, ...]
    """At which the validation loss was measured, from 0; the same for all."""
    losses: tuple[float, ...]


def dominated(sweep: Sequence[Contender], *, total_steps: int, factor: float) -> tuple[str, ...]:
    """Slots that may be stopped, by the rule of this module.

    Args:
        sweep: the slots under way that differ in nothing but the learning rate.
        total_steps: of the whole run.
        factor: between neighbouring rates.
    """
    alive = [one for one in sweep if math.isfinite(one.losses[-1])]
    if not alive:
        return ()
    step = min(one.steps[-1] for one in alive)
    if step < EARLIEST_SHARE * total_steps:
        return ()
    drops = {one.name: one.losses[0] - one.losses[one.steps.index(step)] for one in alive}
    best = max(alive, key=lambda one: drops[one.name])
    lowest = best.lr * factor ** -(NEIGHBOURS + DRIFT + SAME)
    highest = best.lr * factor ** (NEIGHBOURS + SAME)
    return tuple(
        one.name for one in alive if drops[one.name] < LEAST_DROP * drops[best.name] and not lowest < one.lr < highest
    )


def sweeps(slots: Iterable[SlotSpec]) -> tuple[tuple[SlotSpec, ...], ...]:
    """Slots gathered into those that differ in nothing but name and learning rate."""
    groups: dict[SlotSpec, list[SlotSpec]] = {}
    for slot in slots:
        alike = replace(slot, name="", optim=replace(slot.optim, lr=None, lr_b=None))
        groups.setdefault(alike, []).append(slot)
    return tuple(tuple(group) for group in groups.values())


def dominated_slots(
    slots: Iterable[SlotSpec],
    curves: Mapping[str, Mapping[int, float]],
    *,
    step: int,
    total_steps: int,
    factor: float,
) -> tuple[str, ...]:
    """What `dominated` says of every sweep of a run after a step.

    Args:
        slots: of the run.
        curves: validation loss by step, by slot; those of a slot that was retired end before the step.
        step: the last one.
        total_steps: of the whole run.
        factor: between neighbouring rates.
    """
    stopped: list[str] = []
    for sweep in sweeps(slots):
        contenders: list[Contender] = []
        for slot in sweep:
            own = {at: loss for at, loss in curves.get(slot.name, {}).items() if at <= step}
            if step in own:
                steps = tuple(sorted(own))
                losses = tuple(own[at] for at in steps)
                contenders.append(Contender(name=slot.name, lr=slot.optim.lr or 0.0, steps=steps, losses=losses))
        stopped += dominated(contenders, total_steps=total_steps, factor=factor)
    return tuple(stopped)
