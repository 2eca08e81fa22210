"""Estimators against truths that are known without a simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lowregret.studies.best_rate import fit_error, grid_edge, log_best_rates, tuned_test_losses
from lowregret.studies.estimators import (
    departure_steps,
    grid_sizes,
    log_ratios,
    matched,
    pointwise_minimum,
    slopes,
    slopes_on_rank,
    spearman,
    tuned_differences,
)
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.surface import Refused, Surface, aligned, surfaces
from studies.cells import GRID, cells, full, lora


def parabola(best: float, curvature: float = 0.04, floor: float = 2.0) -> Callable[[float, int], float]:
    return lambda rate, seed: floor + 0.01 * seed + 0.5 * curvature * math.log(rate / best) ** 2


def surface(outcomes: list[Outcome]) -> Surface:
    (one,) = surfaces(outcomes).values()
    return one


@given(best=st.floats(4e-4, 2.5e-3), curvature=st.floats(1e-3, 10), points=st.integers(5, 7))
def test_the_vertex_of_a_parabola_is_found_exactly(best: float, curvature: float, points: int) -> None:
    one = surface(cells(lora(), parabola(best, curvature), rates=GRID[:points]))
    if grid_edge(one) is None:
        assert np.exp(log_best_rates(one)) == pytest.approx(best, rel=1e-5)
        assert tuned_test_losses(one) == pytest.approx([2.0 + 0.01 * seed for seed in range(5)], abs=1e-6)


def test_seeds_have_their_own_vertices() -> None:
    one = surface(cells(lora(), lambda rate, seed: math.log(rate / (1e-3 * 1.1**seed)) ** 2))
    assert np.exp(log_best_rates(one)) == pytest.approx([1e-3 * 1.1**seed for seed in range(5)])
    assert fit_error(one) == pytest.approx(0.0, abs=1e-9)


def test_points_far_above_do_not_pull_the_vertex() -> None:
    def cliff(rate: float, seed: int) -> float:
        return parabola(1e-3)(rate, seed) + (10.0 if rate > 4e-3 else 0.0)

    one = surface(cells(lora(), cliff))
    assert np.exp(log_best_rates(one)) == pytest.approx(1e-3)


def test_the_fit_s_error_is_the_scatter_of_its_vertices() -> None:
    rng = np.random.default_rng(0)
    one = surface(cells(lora(), lambda r, s: parabola(1e-3)(r, 0) + rng.normal(0, 0.001), seeds=range(400)))
    assert fit_error(one) == pytest.approx(float(log_best_rates(one).std(ddof=1)), rel=0.1)


@pytest.mark.parametrize(
    ("best", "edge", "settles"),
    [(1e-5, "low", "rates below 0.000178"), (1.0, "high", "rates above 0.00562")],
)
def test_a_minimum_on_the_edge_is_refused(best: float, edge: str, settles: str) -> None:
    one = surface(cells(lora(), parabola(best)))
    assert grid_edge(one) == edge
    for estimate in (log_best_rates, tuned_test_losses):
        with pytest.raises(Refused, match=settles):
            estimate(one)


def test_a_minimum_below_divergence_has_a_loss_but_no_vertex() -> None:
    one = surface(cells(lora(), parabola(3e-3), diverged=lambda rate: rate > 2e-3))
    assert grid_edge(one) == "diverges"
    assert tuned_test_losses(one)[0] == pytest.approx(parabola(3e-3)(GRID[4], 0))
    with pytest.raises(Refused, match=r"between 0\.00178 and the one that diverged"):
        log_best_rates(one)


def test_flat_and_short_and_lost_curves_are_refused() -> None:
    with pytest.raises(Refused, match="every learning rate of r16 diverged"):
        log_best_rates(surface(cells(lora(), parabola(1e-3), diverged=lambda _: True)))
    with pytest.raises(Refused, match="has 3 learning rates that train"):
        log_best_rates(surface(cells(lora(), parabola(1e-3), rates=GRID[2:5])))
    with pytest.raises(Refused, match="lies on its lowest"):
        log_best_rates(surface(cells(lora(), parabola(1e-3), rates=GRID[:1])))

    def bent(rate: float, seed: int) -> float:
        return parabola(1e-3)(rate, 0) * (-0.01 if seed == 3 else 1)

    with pytest.raises(Refused, match="seed 3 of r16 has no minimum"):
        log_best_rates(surface(cells(lora(), bent)))


def test_a_loss_that_is_no_number_counts_as_divergence() -> None:
    one = surface(cells(lora(), lambda rate, seed: math.nan if rate > 5e-3 else parabola(1e-3)(rate, seed)))
    assert np.isinf(one.validation[:, -1]).all()
    assert np.exp(log_best_rates(one)) == pytest.approx(1e-3)


def test_validation_chooses_and_test_reports() -> None:
    one = surface(cells(lora(), parabola(1e-3), test_offset=0.5))
    assert tuned_test_losses(one)[0] == pytest.approx(2.5)
    flipped = [
        replace(o, test=(5.0, o.final_validation if o.lr != GRID[0] else 0.0)) for o in cells(lora(), parabola(1e-3))
    ]
    assert tuned_test_losses(surface(flipped))[0] == pytest.approx(2.0)


@given(phase=st.floats(-0.5, 0.5))
def test_the_tuned_loss_does_not_depend_on_where_the_grid_lies(phase: float) -> None:
    rates = [rate * 10 ** (0.25 * phase) for rate in GRID]
    one = surface(cells(lora(), parabola(1e-3), rates=rates))
    assert tuned_test_losses(one)[0] == pytest.approx(2.0, abs=1e-9)


@given(slope=st.floats(-0.3, 0.3))
def test_slopes_and_ratios_are_those_that_were_planted(slope: float) -> None:
    outcomes = [o for rank in (4, 16, 64) for o in cells(lora(rank), parabola(1e-3 * (rank / 16) ** slope))]
    found = surfaces(outcomes)
    assert slopes_on_rank(found) == pytest.approx(np.full(5, slope), abs=1e-6)
    reference = surface(cells(full(), parabola(5e-4)))
    assert np.exp(log_ratios(found[lora(16)], reference)) == pytest.approx(2.0, rel=1e-6)
    assert tuned_differences(found[lora(4)], reference) == pytest.approx(np.zeros(5), abs=1e-6)
    assert grid_sizes(found) == (("rates of an arm, fewest", 7.0), ("rates of an arm, most", 7.0))


@given(data=st.lists(st.tuples(st.floats(-9, 9), st.integers(0, 4)), min_size=3, max_size=9))
def test_spearman_is_scipy_s(data: list[tuple[float, int]]) -> None:
    x, y = np.array([a for a, _ in data]), np.array([float(b) for _, b in data])
    ours = spearman(x, y[:, None])[0]
    if len(set(x.tolist())) > 1 and len(set(y.tolist())) > 1:
        assert ours == pytest.approx(stats.spearmanr(x, y)[0])
    else:
        assert ours == 0


def test_slopes_ignore_a_constant() -> None:
    y = np.array([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]])
    assert slopes([10, 20, 30], y) == pytest.approx([0.2, 0.0])


def curve(
    arm: Arm,
    losses: Sequence[float],
    *,
    lr: float = 1e-3,
    seed: int = 0,
    test_offset: float = 0.0,
    diverged: bool = False,
) -> Outcome:
    validation = tuple(losses)
    return Outcome(
        cell=f"{lr}{seed}",
        arm=arm,
        lr=lr,
        seed=seed,
        steps=(0, 10, 20, 40)[: len(validation)],
        validation=validation,
        test=tuple(loss + test_offset for loss in validation),
        diverged=diverged,
    )


def test_the_pointwise_minimum_takes_the_best_rate_at_every_step() -> None:
    one = surface(
        [
            curve(lora(), (5.0, 4.0, 3.5, 3.0), lr=1e-3, test_offset=0.1),
            curve(lora(), (5.0, 3.0, 3.2, 3.4), lr=1e-2, test_offset=0.1),
            curve(lora(), (5.0, 2.0), lr=1e-1, test_offset=0.1, diverged=True),
        ]
    )
    steps, losses = pointwise_minimum(one)
    assert steps == (0, 10, 20, 40)
    assert losses[0] == pytest.approx([5.1, 2.1, 3.3, 3.1])


def test_departure_needs_three_sigma_and_the_margin() -> None:
    def arm(rank: int, gaps: Sequence[float], noise: float = 0.0) -> Surface:
        away = [np.array([0, 1, 1, 1]) * noise * (seed - 1) for seed in range(3)]
        base = np.array([5.0, 4.0, 3.5, 3.0]) + np.array(gaps)
        return surface([curve(lora(rank), (base + own).tolist(), seed=seed) for seed, own in enumerate(away)])

    reference = arm(64, (0, 0, 0, 0))
    small, large = arm(1, (0, 0.02, 0.1, 0.2)), arm(16, (0, 0.004, 0.004, 0.1))
    assert departure_steps([small, large], reference, margin=0.005)[:, 0].tolist() == [10, 40]
    assert departure_steps([large], reference, margin=0.2)[0, 0] == math.inf
    noisy = arm(1, (0, 0.02, 0.1, 0.2), noise=0.02)
    assert departure_steps([noisy], reference, margin=0.005)[0].tolist() == [20, 20, 20]
    with pytest.raises(Refused, match="different steps"):
        departure_steps([surface(cells(lora(), parabola(1e-3), seeds=range(3)))], reference, margin=0.1)


def test_only_seeds_that_are_whole_are_compared() -> None:
    whole = cells(lora(), parabola(1e-3), seeds=range(4))
    begun = cells(lora(), parabola(1e-3), seeds=[7], rates=GRID[:2])
    other = cells(full(), parabola(1e-3), seeds=(1, 2, 3, 9))
    found = aligned(surfaces([*begun, *whole, *other]), 3)
    assert {one.seeds for one in found.values()} == {(1, 2, 3)}
    one = found[lora()]
    assert one.validation[:, 3].tolist() == [parabola(1e-3)(GRID[3], seed) for seed in (1, 2, 3)]
    assert one.cells[:2] == (f"r16/{GRID[0]:.3g}/1", f"r16/{GRID[1]:.3g}/1")
    with pytest.raises(Refused, match="3 seeds in every arm, and the rule needs 5") as refused:
        aligned(found, 5)
    assert refused.value.settles == "2 more"


def test_matched_counts_are_relative() -> None:
    assert not matched(lora(10), lora(11), tolerance=0.05)
    assert matched(lora(100), lora(101), tolerance=0.02)
