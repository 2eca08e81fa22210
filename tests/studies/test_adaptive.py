"""The adaptive grid finds the minimum with a third of the paper grid's cells, and ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowregret.specs import GridSpec
from lowregret.studies.adaptive import (
    PAPER_RANKS,
    learned_start,
    next_cells,
    next_rates,
    next_step,
    paper_grid,
)
from lowregret.studies.best_rate import grid_edge, log_best_rates
from lowregret.studies.outcome import Outcome
from lowregret.studies.simulate import Noise, RateTruth, SimulatedStudy, Truth
from lowregret.studies.students_t import t_interval
from lowregret.studies.surface import surfaces
from studies.cells import cells, full, lora

GRID = GridSpec()
SEEDS = range(3)
PAPER_ARMS = (*(lora(rank, steps=1000) for rank in PAPER_RANKS), full(steps=1000))
ARMS = (lora(4, steps=1000), lora(32, steps=1000), lora(256, steps=1000), full(steps=1000))


def walk(start: float, loss: Callable[[float, int], float], grid: GridSpec = GRID, **rest) -> tuple[list[float], str]:
    """Ask until done; the rates in the order in which they were asked for, and why it ended."""
    outcomes: list[Outcome] = []
    asked: list[float] = []
    for _ in range(50):
        step = next_step(start, outcomes, grid)
        if step.done:
            return asked, step.reason
        assert not set(step.rates) & set(asked)
        asked += step.rates
        outcomes += cells(lora(), loss, rates=step.rates, seeds=SEEDS, **rest)
    raise AssertionError("the grid does not end")


def bowl(best: float) -> Callable[[float, int], float]:
    return lambda rate, seed: 2 + 0.01 * seed + 0.02 * math.log(rate / best) ** 2


def test_a_good_start_takes_five_rates() -> None:
    asked, reason = walk(1e-3, bowl(1.1e-3))
    assert asked == [3.16e-4, 1e-3, 3.16e-3, 5.62e-4, 1.78e-3]
    assert reason == "LR* is 0.0011, to 1.00x"


@settings(max_examples=50)
@given(best=st.floats(1e-6, 1.0), diverges=st.floats(1.5, 1e3))
def test_it_ends_within_its_cap_around_the_minimum(best: float, diverges: float) -> None:
    asked, reason = walk(1e-3, bowl(best), diverged=lambda rate: rate > diverges * best)
    assert len(asked) <= GRID.most_points
    if "allows" not in reason and "diverges" not in reason:
        assert sum(rate < best for rate in asked) >= 2
        assert sum(rate > best for rate in asked) >= 2


def test_it_follows_the_edge_and_closes_in_on_divergence() -> None:
    low, _ = walk(1e-3, bowl(1e-4))
    assert min(low) < 1e-4 < max(low)
    high, reason = walk(1e-3, bowl(1e-1), diverged=lambda rate: rate > 4e-3)
    assert reason == "every rate above 0.00316, the best, diverges"
    assert all(rate <= 1e-2 for rate in high)
    lost, reason = walk(1e-3, bowl(1e-3), diverged=lambda _: True)
    assert len(lost) == GRID.most_points


def test_one_seed_and_noise_and_restless_seeds_end_it_with_their_reason() -> None:
    one = cells(lora(), bowl(1e-3), rates=(3.16e-4, 5.62e-4, 1e-3, 1.78e-3, 3.16e-3), seeds=[0])
    assert next_step(1e-3, one, GRID).reason == "the minimum is found; one seed gives no interval"
    assert next_rates(1e-3, one, GRID) == ()
    restless, reason = walk(1e-3, lambda rate, seed: bowl(1e-3 * 1.4 ** (seed - 1))(rate, 0))
    assert len(restless) == 5
    assert "more seeds, not more rates" in reason
    rng = np.random.default_rng(0)
    noisy, reason = walk(1e-3, lambda rate, seed: bowl(1e-3)(rate, seed) + rng.normal(0, 0.02))
    assert len(noisy) >= 7
    assert reason


def test_it_finds_what_the_paper_grid_finds_with_a_third_of_its_cells() -> None:
    """60 studies whose planner is off by a factor of about 1.5; the question is LR* of ranks and of FullFT."""
    truth = Truth(rates=RateTruth(rank_slope=0.1, skew=0.0))
    used: list[int] = []
    covered: list[bool] = []
    agreed: list[bool] = []
    for number in range(60):
        rng = np.random.default_rng(number)
        off = rng.normal(0, 0.4)
        starts = {arm: truth.rates.best(arm) * math.exp(off + rng.normal(0, 0.1)) for arm in PAPER_ARMS}
        study = SimulatedStudy(SEEDS, truth, rng)
        outcomes = _ask({arm: starts[arm] for arm in ARMS}, study)
        paper = surfaces(study.train(paper_grid(starts)))
        used.append(len(outcomes) // len(SEEDS))
        for arm, surface in surfaces(outcomes).items():
            low, high = t_interval(log_best_rates(surface))
            covered.append(low <= math.log(truth.rates.best(arm)) <= high)
            if grid_edge(paper[arm]) is None:
                other = t_interval(log_best_rates(paper[arm]))
                agreed.append(other[0] <= high and low <= other[1])
    of_paper = 6 * len(PAPER_ARMS)
    assert np.mean(used) <= of_paper / 3
    assert max(used) <= of_paper * 0.4
    # 240 intervals of 95 %: 89 % is three binomial standard errors (1.4 %) below, and a bit for stopping when narrow.
    assert np.mean(covered) >= 0.89
    assert np.mean(agreed) >= 0.98


def _ask(starts: dict, study: SimulatedStudy) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while True:
        steps = next_cells(starts, outcomes, GRID)
        wanted = {arm: step.rates for arm, step in steps.items() if not step.done}
        if not wanted:
            assert set(steps) == set(starts)
            return outcomes
        outcomes += study.train(wanted)


def test_arms_wait_for_their_scout_and_start_where_it_points() -> None:
    starts = dict.fromkeys(ARMS, 1e-3)
    first = next_cells(starts, (), GRID)
    assert set(first) == {lora(32, steps=1000), full(steps=1000)}
    study = SimulatedStudy(SEEDS, Truth(noise=Noise(run=1e-4, split=1e-4, jitter=0.01)), np.random.default_rng(0))
    outcomes = study.train({lora(32, steps=1000): tuple(3e-3 * 10 ** (0.25 * k) for k in range(-2, 3))})
    then = next_cells(starts, outcomes, GRID)
    assert then[lora(32, steps=1000)].done
    assert then[lora(4, steps=1000)].rates[1] == pytest.approx(3e-3, rel=0.1)
    assert learned_start(1e-3, {}) == 1e-3


def test_the_paper_grid_is_even_around_the_planner() -> None:
    grid = paper_grid({lora(rank): 1e-3 for rank in PAPER_RANKS})
    assert len(grid) == 10
    for rates in grid.values():
        assert len(rates) == 6
        assert math.prod(rates) == pytest.approx(1e-18, rel=0.02)


def test_a_stopped_cell_below_the_minimum_does_not_send_the_grid_further_down() -> None:
    def stopped(rate: float) -> bool:
        return rate < 5e-4

    outcomes = cells(lora(), bowl(1e-3), rates=(1e-4, 1e-3, 3e-3), diverged=stopped, seeds=SEEDS)
    assert next_rates(1e-3, outcomes, GRID) == (3.16e-4,)
