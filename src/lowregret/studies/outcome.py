"""What estimators see of a study: finished cells as plain series, grouped by what is compared. No torch, no files."""

from __future__ import annotations

from dataclasses import dataclass

from lowregret.specs import Arm
from lowregret.store.study import Dynamics, ForwardFidelity

__all__ = ["Arm", "Outcome"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One finished cell: an arm at one learning rate with one seed.

    >>> arm = Arm(method="lora", rank=8, params=4096, batch_size=8, steps=2)
    >>> outcome = Outcome(cell="a1", arm=arm, lr=1e-3, seed=0, steps=(0, 1, 2), validation=(2.0, 1.9, 1.8),
    ...     test=(2.0, 1.9, 1.85))
    >>> outcome.final_validation, outcome.final_test
    (1.8, 1.85)
    """

    cell: str
    """Identity of the cell."""
    arm: Arm
    lr: float
    seed: int
    """Same seed, same data order, in every arm: comparisons are paired by it."""
    steps: tuple[int, ...]
    """Optimizer steps at which the held-out losses were measured, from 0."""
    validation: tuple[float, ...]
    """Held-out NLL that learning rates are chosen by, nats a completion token, one a step of `steps`."""
    test: tuple[float, ...]
    """Held-out NLL that is reported."""
    diverged: bool = False
    """The cell was retired (or stopped as surely dominated) before its last step: its final loss does not exist."""
    stopped: bool = False
    """It was stopped as surely dominated; `diverged` is true as well."""
    dynamics: Dynamics | None = None
    """Norms of its adapter over `steps` and its kernel's match; None where the question did not ask."""
    fidelity: tuple[ForwardFidelity, ...] = ()
    """Of each bf16 arithmetic after some of its steps; empty where the question did not ask."""
    offered_bits: float | None = None
    """Bits of all facts that the cell was to memorise, N H; None in other studies."""
    stored_bits: float | None = None
    """Bits of them that it holds, N H - NLL, summed over all facts."""
    multiply_adds: float | None = None
    """Counted (`planner.flops`), of one token in each of the run's steps; None where nobody counted."""
    seconds: float | None = None
    """The cell's training time, evaluation left out; None where it was not measured."""

    @property
    def final_validation(self) -> float:
        """Validation loss after the last step; infinite where the cell diverged."""
        return float("inf") if self.diverged else self.validation[-1]

    @property
    def final_test(self) -> float:
        """Test loss after the last step; infinite where the cell diverged."""
        return float("inf") if self.diverged else self.test[-1]
