"""What a run tells whoever watches it: the terminal, a tracker, a test. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from lowregret.specs import ResolvedPlan


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One finished optimizer step.

    >>> StepReport(step=1, steps=10, losses={"r8": 1.5}, tokens_per_second=400.0, seconds_left=9.0).losses["r8"]
    1.5
    """

    step: int
    """Steps done, from 1."""
    steps: int
    """Steps of the whole run."""
    losses: dict[str, float]
    """What `measure` says, of each live slot at this step."""
    tokens_per_second: float
    """Real tokens of all slots over the last steps, per second of training (evaluation excluded)."""
    seconds_left: float
    """Estimate for the rest of the run, evaluations included."""
    measure: str = "loss"
    """`loss`: nats per completion token; `reward`: mean over the completions."""


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """A held-out measure of every slot at one step.

    >>> EvalReport(step=0, split="test", nll={"base": 2.0}).nll
    {'base': 2.0}
    """

    step: int
    split: str
    """`validation`, `test`, or the name of a further data set."""
    nll: dict[str, float] = field(default_factory=dict)
    """What `measure` says by slot; `base` is the model without any adapter, at step 0 only."""
    measure: str = "NLL"
    """`NLL`: nats per completion token; `accuracy`: share of problems solved."""


@runtime_checkable
class ProgressListener(Protocol):
    """Receives the events of a run. Must not raise and must not change the run."""

    def on_plan(self, plan: ResolvedPlan) -> None:
        """The plan is settled; nothing has been loaded yet."""
        ...

    def on_step(self, report: StepReport) -> None: ...

    def on_eval(self, report: EvalReport) -> None: ...

    def on_message(self, message: str) -> None:
        """One line for the user: loading, resuming, a slot retired, a checkpoint skipped."""
        ...


class Silent:
    """A listener that hears nothing."""

    def on_plan(self, plan: ResolvedPlan) -> None:
        pass

    def on_step(self, report: StepReport) -> None:
        pass

    def on_eval(self, report: EvalReport) -> None:
        pass

    def on_message(self, message: str) -> None:
        pass
