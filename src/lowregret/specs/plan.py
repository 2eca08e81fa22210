"""A resolved plan: every derived value, with the reason for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from lowregret.specs.data import DataFacts
from lowregret.specs.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Derived:
    """One value that the planner chose, why, and where the rule comes from.

    >>> Derived(name="steps", value=12, reason="96 examples / 8 a step", source="data").value
    12
    """

    name: str
    """Dotted name of what was decided, such as `slots.r8.optim.lr`."""
    value: float | int | str | bool
    reason: str
    """Why, in a sentence with the numbers that went in."""
    source: str
    """Where the rule comes from: a section of the paper, a formula, a measurement, or `user`."""


@dataclass(frozen=True, kw_only=True)
class Information:
    """Bits that a run's data brings: what is new in it, counted, times the bits in each.

    >>> Information(units=1000, unit="completion tokens", bits_per_unit=1.5, reason="measured").bits
    1500.0
    """

    units: int
    """Completion tokens that the run sees for the first time (SFT), or scored samples (RL)."""
    unit: str
    bits_per_unit: float
    interval: tuple[float, float] | None = None
    """95 % interval of `bits_per_unit` where it was measured."""
    reason: str
    """Where the bits per unit come from."""
    bits_per_parameter: float = 2.0
    """What one adapter parameter is taken to hold, on the other side of the balance (science.md, section 2)."""

    @property
    def bits(self) -> float:
        """Bits in all of it."""
        return self.units * self.bits_per_unit


@dataclass(frozen=True, kw_only=True)
class ResolvedPlan:
    """What a run will do, with nothing left open: written to `plan.toml` before the first step.

    >>> ResolvedPlan.__dataclass_params__.frozen
    True
    """

    spec: RunSpec
    """The run with every `auto` and None resolved that the run depends on."""
    facts: DataFacts
    information: Information | None = None
    """Bits that the data brings; `resolve` always fills it in."""
    steps: int
    """Optimizer steps of the run."""
    tokens_per_microbatch: int
    """Token budget of one forward and backward."""
    device: str
    dtype: str
    """`bf16` or `fp32`."""
    bf16_fast: bool = False
    """Whether the device multiplies bf16 in hardware: memory depends on it."""
    threads: int
    """CPU threads, fixed so that a resumed run adds in the same order."""
    derived: tuple[Derived, ...] = ()
    """The decisions, in the order in which they were taken."""
    warnings: tuple[str, ...] = ()
    """What the user should look at before starting."""
    memory_bytes: dict[str, int] = field(default_factory=dict[str, int])
    """Predicted peak by part."""
