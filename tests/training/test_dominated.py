"""Slots that are stopped early: how often the rule is wrong, and that the engine follows it."""

from __future__ import annotations

import numpy as np

from lowregret.specs import AdapterSpec, FullSpec, OptimSpec, SlotSpec
from lowregret.specs.study import QUARTER_DECADE
from lowregret.training.dominated import Contender, dominated, dominated_slots, sweeps

FACTOR = QUARTER_DECADE


def _trade_off(rng: np.random.Generator) -> tuple[list[Contender], int]:
    """Nine rates after a third of the run, and which is best at the end: fast rates end on a higher floor."""
    speed, floor, power = rng.uniform(1, 8), rng.uniform(0.02, 0.3), rng.uniform(0.5, 2)
    rates = 10 ** (0.25 * (np.arange(9) - 4 + rng.uniform(-2, 2)))

    def loss(step: float) -> np.ndarray:
        progress = np.exp(-speed * rates * step / 300)
        return 3 * progress + floor * rates**power * (1 - progress**3) + rng.normal(0, 0.01, 9)

    steps = (0, 25, 50, 75, 100)
    curves = np.stack([np.full(9, 3.0), *(loss(step) for step in steps[1:])], axis=1).tolist()
    sweep = [
        Contender(name=str(k), lr=float(rate), steps=steps, losses=tuple(curve))
        for k, (rate, curve) in enumerate(zip(rates, curves, strict=True))
    ]
    return sweep, int(np.argmin(loss(300)))


def test_a_dominated_slot_is_never_the_best_in_the_end() -> None:
    rng = np.random.default_rng(0)
    stopped = best_stopped = near_stopped = 0
    for _ in range(1000):
        sweep, best = _trade_off(rng)
        dropped = [int(slot) for slot in dominated(sweep, total_steps=300, factor=FACTOR)]
        stopped += len(dropped)
        best_stopped += best in dropped
        near_stopped += any(abs(slot - best) <= 2 for slot in dropped)
    assert best_stopped == 0
    assert near_stopped <= 5
    assert stopped >= 0.2 * 9000


def test_nothing_is_dominated_early_or_alone() -> None:
    sweep, _ = _trade_off(np.random.default_rng(0))
    assert dominated(sweep, total_steps=1000, factor=FACTOR) == ()
    assert dominated([], total_steps=300, factor=FACTOR) == ()
    assert dominated(sweep[:1], total_steps=300, factor=FACTOR) == ()


def _slot(name: str, lr: float, *, rank: int = 4, seed: int = 0) -> SlotSpec:
    return SlotSpec(name=name, weights=AdapterSpec(rank=rank, init_seed=seed), optim=OptimSpec(lr=lr))


def test_only_slots_that_differ_in_nothing_but_the_rate_compete() -> None:
    full = SlotSpec(name="full", weights=FullSpec(), optim=OptimSpec(lr=1e-3))
    slots = (_slot("a", 1e-3), _slot("b", 1e-2), _slot("c", 1e-3, rank=8), _slot("d", 1e-3, seed=1), full)
    assert [[slot.name for slot in sweep] for sweep in sweeps(slots)] == [["a", "b"], ["c"], ["d"], ["full"]]


def test_a_slot_far_off_that_gained_little_is_stopped_and_its_neighbours_are_not() -> None:
    slots = [_slot(str(k), 1e-3 * FACTOR**k) for k in range(7)] + [_slot("other", 1.0, rank=8)]
    gains = (0.2, 0.4, 0.9, 1.0, 0.9, 0.4, 0.3)
    curves = {str(k): {0: 3.0, 50: 3.0 - gain} for k, gain in enumerate(gains)} | {"other": {0: 3.0, 50: 3.0}}
    # Number 3 is best: 1 and 5 are its fit's neighbours, 0 is within the drift that the best may still show.
    assert dominated_slots(slots, curves, step=50, total_steps=100, factor=FACTOR) == ("6",)
    assert dominated_slots(slots, curves, step=0, total_steps=100, factor=FACTOR) == ()
