"""Finished cells of one arm as a table of final losses over seeds and learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.students_t import Floats


class Refused(Exception):
    """The cells can't carry an estimate; the verdict is `inconclusive`.

    Args:
        reason: what is missing, as the finding says it.
        settles: which cells would settle it.
    """

    def __init__(self, reason: str, settles: str) -> None:
        super().__init__(f"{reason}; {settles}")
        self.reason = reason
        self.settles = settles


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """Final losses of one arm.

    >>> arm = Arm(method="full", params=1, batch_size=8, steps=2)
    >>> Surface(arm=arm, seeds=(0,), rates=(1e-3,), validation=np.ones((1, 1)), test=np.ones((1, 1)), cells=("a1",),
    ...     outcomes=()).num_rates
    1
    """

    arm: Arm
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    """Ascending; every seed was trained at each."""
    validation: Floats
    """(seed, rate); nats a token, infinite where the cell diverged."""
    test: Floats
    """(seed, rate); the same cells on the split that is reported."""
    cells: tuple[str, ...]
    """Identities, seed by seed."""
    outcomes: tuple[Outcome, ...]
    """The same cells with their whole curves."""

    @property
    def num_rates(self) -> int:
        return len(self.rates)

    @property
    def log_rates(self) -> Floats:
        """Natural logarithms."""
        return np.log(self.rates)


def surfaces(outcomes: Iterable[Outcome]) -> dict[Arm, Surface]:
    """The table of every arm; sorted, so that no sum depends on the order in which cells were finished.

    A seed that lacks rates which other seeds have (a study that its budget ended, or a seed just added) is left out:
    a minimum over fewer points is biased.
    """
    groups: dict[Arm, dict[int, dict[float, Outcome]]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.arm, {}).setdefault(outcome.seed, {})[outcome.lr] = outcome
    return {arm: _surface(arm, groups[arm]) for arm in sorted(groups, key=_order)}


def _order(arm: Arm) -> tuple[object, ...]:
    return (
        arm.method,
        arm.rank or 0,
        arm.alpha,
        arm.targets,
        arm.variant,
        arm.batch_size,
        arm.steps,
        arm.width,
        arm.params,
    )


def aligned(found: Mapping[Arm, Surface], least: float) -> dict[Arm, Surface]:
    """The same tables on the seeds that all arms have, so that row s is the same data order everywhere.

    Raises:
        Refused: no arm, or fewer seeds than the rule needs.
    """
    if not found:
        raise Refused("no finished cells", "finish the study")
    first = next(iter(found.values()))
    if all(surface.seeds == first.seeds for surface in found.values()):
        shared = first.seeds
    else:
        shared = tuple(sorted(set[int].intersection(*(set(surface.seeds) for surface in found.values()))))
    needed = max(2, math.ceil(least))
    if len(shared) < needed:
        raise Refused(
            f"{len(shared)} {'seed' if len(shared) == 1 else 'seeds'} in every arm, and the rule needs {needed}",
            f"{needed - len(shared)} more",
        )
    return {arm: _restricted(surface, shared) for arm, surface in found.items()}


def _surface(arm: Arm, by_seed: Mapping[int, Mapping[float, Outcome]]) -> Surface:
    most = max(len(cells) for cells in by_seed.values())
    seeds = tuple(sorted(seed for seed, cells in by_seed.items() if len(cells) == most))
    rates = sorted(set[float].intersection(*(set(by_seed[seed]) for seed in seeds)))
    outcomes = tuple(by_seed[seed][rate] for seed in seeds for rate in rates)
    shape = (len(seeds), len(rates))
    return Surface(
        arm=arm,
        seeds=seeds,
        rates=tuple(rates),
        validation=_losses([outcome.final_validation for outcome in outcomes], shape),
        test=_losses([outcome.final_test for outcome in outcomes], shape),
        cells=tuple(outcome.cell for outcome in outcomes),
        outcomes=outcomes,
    )


def _losses(values: Sequence[float], shape: tuple[int, int]) -> Floats:
    """A loss that is no number is one that diverged."""
    table = np.array(values).reshape(shape)
    return np.where(np.isfinite(table), table, np.inf)


def _restricted(surface: Surface, seeds: tuple[int, ...]) -> Surface:
    if surface.seeds == seeds:
        return surface
    rows = [surface.seeds.index(seed) for seed in seeds]
    kept = [row * surface.num_rates + column for row in rows for column in range(surface.num_rates)]
    return replace(
        surface,
        seeds=seeds,
        validation=surface.validation[rows],
        test=surface.test[rows],
        cells=tuple(surface.cells[k] for k in kept),
        outcomes=tuple(surface.outcomes[k] for k in kept),
    )
