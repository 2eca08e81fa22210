"""Simulated fidelity studies: rates that both arithmetics of a pair share, and forward fidelities from a truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lowregret.store.study import ForwardFidelity
from lowregret.studies.designs import Design, around
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.swallowing import FORWARD, NORMAL_95
from lowregret.studies.truth import SwallowedTruth, Truth

STEP = 1
"""After which it is measured."""
DROP = 0.05
"""Nats that an update gains in fp32; a ratio does not depend on it."""
SEQUENCES = 64


def shared_grids(
    arms: Sequence[Arm], design: Design, truth: Truth, rng: np.random.Generator
) -> Mapping[Arm, Sequence[float]]:
    """Grids around the faithful arms' LR*; the usual twin of each is trained at the same rates."""
    faithful = {arm: around(truth.rates.best(arm), design.rates, rng) for arm in arms if not arm.variant}
    return {arm: faithful[replace(arm, variant="")] for arm in arms}


def measured(outcomes: Sequence[Outcome], truth: Truth, rng: np.random.Generator) -> list[Outcome]:
    """The same cells, the faithful ones with forward fidelities.

    What the held-out sequences leave is one draw for all seeds of a method and arithmetic; its size is that of the
    intervals.
    """
    swallowed = truth.swallowed
    off = {name: rng.normal(0.0, swallowed.sequences) for own in FORWARD.values() for name in own}
    half = NORMAL_95 * swallowed.sequences
    found: list[Outcome] = []
    for outcome in outcomes:
        rows: list[ForwardFidelity] = []
        for name, mean in _truths(outcome.arm, swallowed).items():
            value = float(mean + off[name] + rng.normal(0.0, swallowed.seeds))
            rows.append(
                ForwardFidelity(
                    step=STEP,
                    arithmetic=name,
                    fidelity=value,
                    low=value - half,
                    high=value + half,
                    fp32_drop=DROP,
                    drop=value * DROP,
                    sequences=SEQUENCES,
                )
            )
        found.append(replace(outcome, fidelity=tuple(rows)))
    return found


def _truths(arm: Arm, swallowed: SwallowedTruth) -> dict[str, float]:
    """By name of the arithmetic; none of an arm that trains in the usual one."""
    if arm.variant:
        return {}
    faithful, usual = FORWARD[arm.method]
    return {faithful: swallowed.faithful, usual: swallowed.lora if arm.method == "lora" else swallowed.full}
