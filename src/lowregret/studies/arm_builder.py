"""An arm as a run of one slot whose learning rate and seed are still open, and how it is made from a question.

No torch: parameters and arithmetic are counted from the base's shape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lowregret.planner.flops import flops
from lowregret.planner.memory import full_params
from lowregret.planner.resolve import slot_rate
from lowregret.planner.targets import select
from lowregret.specs import (
    AdapterSpec,
    Arithmetic,
    Arm,
    DataSpec,
    FullSpec,
    HardwareSpec,
    ModelSpec,
    OptimSpec,
    QuestionSpec,
    Rounding,
    RunSpec,
    SlotSpec,
    TrainSpec,
)
from lowregret.specs.shape import ModelShape

ONE_RATE = ("early", "cost", "invariance", "dynamics")
"""Protocols that compare arms at one rate and sweep nothing."""
ALONE = ("cost", "invariance")
"""Protocols whose cells train alone: their times, or their last bits, must not depend on who trains beside them."""
REINFORCED = ("rl", "rl-layers")
"""Protocols whose cells train by reinforcement; their records hold error rates."""
NEVER_DROPPED = (*ONE_RATE, "capacity", "fidelity", *REINFORCED)
"""Protocols whose cells all train to the end. Those of `capacity` sweep, but their held-out loss says nothing: nobody
can guess the facts; those of `fidelity` are compared at every rate, small ones above all; those of RL may collapse
late, so that no rate is surely worse than one that leads now."""
SLOT = "cell"
"""Name of the only slot of a cell; its bank names slots by the cells' identities."""


@dataclass(frozen=True, kw_only=True)
class ArmTemplate:
    """An arm and the run that each of its cells is, but for learning rate and seed.

    >>> sorted(ArmTemplate.__dataclass_fields__)
    ['arm', 'lr_factors', 'run', 'start']
    """

    arm: Arm
    run: RunSpec
    """With one slot."""
    start: float
    """The planner's learning rate, where an adaptive grid begins."""
    lr_factors: tuple[float, float] | None = None
    """Of A's and B's learning rate on the cell's (p and q of C1). None: one rate for both."""

    def cell(self, lr: float, seed: int) -> RunSpec:
        """The run of one cell: the seed decides A, the order of the examples and any rounding."""
        slot = self.run.slots[0]
        if isinstance(slot.weights, AdapterSpec):
            weights = replace(slot.weights, init_seed=seed)
        else:
            weights = replace(slot.weights, rounding_seed=seed)
        optim = replace(slot.optim, lr=lr)
        if self.lr_factors is not None:
            p, q = self.lr_factors
            optim = replace(optim, lr=p * lr, lr_b=q * lr)
        slot = replace(slot, weights=weights, optim=optim, data_seed=seed)
        return replace(self.run, slots=(slot,))


@dataclass(frozen=True, kw_only=True)
class Base:
    """What is counted about a base and the question's data on it.

    >>> sorted(Base.__dataclass_fields__)
    ['mean_length', 'shape']
    """

    shape: ModelShape
    mean_length: float
    """Tokens of an example."""


@dataclass(frozen=True)
class Builder:
    """Makes the arms of one question on one base."""

    question: QuestionSpec
    model: ModelSpec
    base: Base
    hardware: HardwareSpec

    @property
    def shape(self) -> ModelShape:
        return self.base.shape

    def lora(
        self,
        rank: int,
        *,
        alpha: float = 32.0,
        targets: tuple[str, ...] = ("all",),
        train: TrainSpec | None = None,
        variant: str = "",
        data: DataSpec | None = None,
        offered_bits: float = 0.0,
        arithmetic: Arithmetic = "accumulator",
    ) -> ArmTemplate:
        """An arm of adapters."""
        weights = AdapterSpec(rank=rank, alpha=alpha, targets=targets, arithmetic=arithmetic)
        matrices = select(self.shape, targets, unembed=False)
        params = sum(matrix.adapter_params(rank) for matrix in matrices)
        cost = flops(self.shape, method="lora", adapted=matrices, rank=rank, mean_length=self.base.mean_length)
        arm = replace(
            self._arm(params, train, variant),
            method="lora",
            rank=rank,
            alpha=alpha,
            targets=targets,
            multiply_adds=cost.per_token,
            offered_bits=offered_bits,
        )
        return self._template(arm, weights, train, data)

    def full(
        self,
        *,
        train: TrainSpec | None = None,
        variant: str = "",
        rounding: Rounding = "stochastic",
        start: Literal["stored", "bf16"] = "stored",
    ) -> ArmTemplate:
        """The arm of full fine-tuning."""
        weights = FullSpec(support=self.question.support, rounding=rounding, start=start)
        params = full_params(self.shape, weights)
        cost = flops(self.shape, method="full", mean_length=self.base.mean_length)
        arm = replace(self._arm(params, train, variant), multiply_adds=cost.per_token)
        return self._template(arm, weights, train)

    def _arm(self, params: int, train: TrainSpec | None, variant: str) -> Arm:
        train = train or self.question.train
        return Arm(
            method="full",
            params=params,
            batch_size=train.batch_size,
            steps=train.steps or 0,
            width=self.shape.hidden_size,
            variant=variant,
        )

    def _template(
        self, arm: Arm, weights: AdapterSpec | FullSpec, train: TrainSpec | None, data: DataSpec | None = None
    ) -> ArmTemplate:
        question = self.question
        run = RunSpec(
            task="sft" if question.rl is None else "rl",
            model=self.model,
            data=data or question.data,
            slots=(SlotSpec(name=SLOT, weights=weights, optim=OptimSpec()),),
            train=replace(train or question.train, num_samples=0),
            rl=question.rl,
            hardware=self.hardware,
        )
        grid = question.grid
        if grid.kind == "adaptive" and question.protocol not in NEVER_DROPPED:
            run = replace(run, train=replace(run.train, drop_dominated=grid.factor))
        start = grid.full_start if arm.method == "full" else grid.start
        if start is None:
            start = slot_rate(run.slots[0], run, self.shape, arm.steps).value
        return ArmTemplate(arm=arm, run=run, start=start)
