"""Outcomes with a given loss at every rate and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lowregret.specs import Arm
from lowregret.studies.outcome import Outcome

GRID = tuple(1e-3 * 10 ** (0.25 * k) for k in range(-3, 4))


def lora(rank: int = 16, **fields: Any) -> Arm:
    """A LoRA arm; parameters go with its rank."""
    settings = {"params": 1000 * rank, "batch_size": 8, "steps": 100, "width": 128, **fields}
    return Arm(method="lora", rank=rank, **settings)


def full(**fields: Any) -> Arm:
    """The FullFT arm."""
    return Arm(method="full", **{"params": 10**6, "batch_size": 8, "steps": 100, "width": 128, **fields})


def cells(
    arm: Arm,
    loss: Callable[[float, int], float],
    *,
    rates: Sequence[float] = GRID,
    seeds: Sequence[int] = range(5),
    test_offset: float = 0.0,
    diverged: Callable[[float], bool] = lambda _: False,
) -> list[Outcome]:
    """Cells whose final validation loss is `loss(rate, seed)` and whose test loss lies `test_offset` above."""
    return [
        Outcome(
            cell=f"{arm.label}/{rate:.3g}/{seed}",
            arm=arm,
            lr=rate,
            seed=seed,
            steps=(0, arm.steps),
            validation=(5.0, loss(rate, seed)),
            test=(5.0, loss(rate, seed) + test_offset),
            diverged=diverged(rate),
        )
        for seed in seeds
        for rate in rates
    ]
