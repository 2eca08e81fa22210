"""Simulated studies of reinforcement learning: error rates of cells, drawn from a truth (`truth_rl`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.students_t import Floats
from lowregret.studies.truth import Truth
from lowregret.studies.truth_rl import COLLAPSES_AFTER, evaluated

EVALUATIONS = 12
"""After step 0, evenly over the run: as papers/rl.toml has them."""


def simulate_rl(
    cells: Mapping[Arm, Sequence[float]], seeds: Sequence[int], truth: Truth, rng: np.random.Generator
) -> list[Outcome]:
    """One study, trained in one go: every arm at its rates with every seed.

    Args:
        cells: learning rates of each arm.
        seeds: paired across arms by what they share.
        truth: `rl`, and of the rest the places of plateaus (`rates`) and the gaps of arms, read as accuracies.
        rng: all randomness comes from it.
    """
    rl = truth.rl
    shared = rng.normal(0.0, rl.shared, (len(seeds), 1))
    before = rng.binomial(rl.prompts, rl.start, (len(seeds), 1, 2)) / rl.prompts
    outcomes: list[Outcome] = []
    for arm, rates in cells.items():
        steps = evaluated(arm.steps, EVALUATIONS)
        decades = (np.log(rates) - math.log(truth.rates.best(arm))) / math.log(10)
        decades = decades - rng.normal(0.0, rl.jitter, (len(seeds), 1))
        final = rl.final(arm, decades, truth.gap(arm)) + shared + rng.normal(0.0, rl.run, decades.shape)
        accuracy = _curves(arm, steps, decades, final, truth, rng)
        seen = rng.binomial(rl.prompts, accuracy[:, :, None], (*decades.shape, 2, len(steps))) / rl.prompts
        seen[..., 0] = before
        outcomes += _outcomes(arm, rates, seeds, steps, 1 - seen)
    return outcomes


def _curves(
    arm: Arm, steps: Sequence[int], decades: Floats, final: Floats, truth: Truth, rng: np.random.Generator
) -> Floats:
    """Accuracies (seed, rate, step) before they are measured."""
    rl = truth.rl
    rise = rl.rise(arm, steps, rng.normal(0.0, rl.speed, decades.shape))
    collapses = rl.collapses(arm, decades)[..., None]
    late = np.array(steps) > COLLAPSES_AFTER * arm.steps
    goal = np.where(collapses > 0, rl.peak - truth.gap(arm), final[..., None])
    accuracy = rl.start + (goal - rl.start) * rise
    return np.clip(np.where((collapses > 0) & late, final[..., None], accuracy), 0.0, 1.0)


def _outcomes(
    arm: Arm, rates: Sequence[float], seeds: Sequence[int], steps: tuple[int, ...], errors: Floats
) -> list[Outcome]:
    series: list[list[list[list[float]]]] = errors.tolist()
    return [
        Outcome(
            cell=f"{arm.label} {lr:.3g} {seed}",
            arm=arm,
            lr=lr,
            seed=seed,
            steps=steps,
            validation=tuple(series[row][k][0]),
            test=tuple(series[row][k][1]),
        )
        for row, seed in enumerate(seeds)
        for k, lr in enumerate(rates)
    ]
