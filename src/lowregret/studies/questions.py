"""From a question to its arms: what is compared, as runs of one slot whose learning rate and seed are still open.

No torch: parameters are counted from the base's shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

from lowregret.errors import SpecError
from lowregret.planner.flops import flops
from lowregret.planner.memory import full_params
from lowregret.planner.resolve import slot_rate
from lowregret.planner.targets import select
from lowregret.specs import (
    AdapterSpec,
    Arm,
    DataSpec,
    FullSpec,
    HardwareSpec,
    ModelSpec,
    OptimSpec,
    QuestionSpec,
    RunSpec,
    SlotSpec,
    TrainSpec,
)
from lowregret.specs.shape import ModelShape
from lowregret.studies.equal_parameters import matched_ranks

ONE_RATE = ("early", "cost", "invariance", "dynamics")
"""Protocols that compare arms at one rate and sweep nothing."""
ALONE = ("cost", "invariance")
"""Protocols whose cells train alone: their times, or their last bits, must not depend on who trains beside them."""
REINFORCED = ("rl", "rl-layers")
"""Protocols whose cells train by reinforcement; their records hold error rates."""
NEVER_DROPPED = (*ONE_RATE, "capacity", *REINFORCED)
"""Protocols whose cells all train to the end. Those of `capacity` sweep, but their held-out loss says nothing: nobody
can guess the facts; those of RL may collapse late, so that no rate is surely worse than one that leads now."""
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


def arm_templates(
    question: QuestionSpec, bases: Mapping[str, Base], *, model: ModelSpec, hardware: HardwareSpec
) -> tuple[ArmTemplate, ...]:
    """The arms of a question, in the order in which tables show them.

    Args:
        question: with `train.steps` set, but for `capacity`, which goes by `train.epochs`.
        bases: every base of the question, by its source.
        model: the study's base, where the question names none.
        hardware: of one worker.

    Raises:
        SpecError: the protocol is not known, or lacks a setting.
    """
    if question.protocol not in PROTOCOLS:
        raise SpecError(f"protocol: {question.protocol!r} is not known; give {', '.join(PROTOCOLS)}")
    if not question.seeds:
        raise SpecError("seeds: a question needs at least one; give --seeds 3")
    if question.train.steps is None and question.protocol != "capacity":
        raise SpecError(f"{question.protocol}: train.steps is missing; a study compares runs of stated length")
    if question.protocol in REINFORCED and question.rl is None:
        raise SpecError(f"{question.protocol}: rl is missing; give its rewards, such as papers/rl.toml does")
    if question.protocol not in REINFORCED and question.rl is not None:
        raise SpecError(f"{question.protocol}: rl is for {' and '.join(REINFORCED)}; leave it out")
    builders = [_Builder(question, base, bases[base.source], hardware) for base in question.models or (model,)]
    return tuple(template for builder in builders for template in PROTOCOLS[question.protocol](builder))


@dataclass(frozen=True)
class _Builder:
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
    ) -> ArmTemplate:
        """An arm of adapters."""
        weights = AdapterSpec(rank=rank, alpha=alpha, targets=targets)
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

    def full(self, *, train: TrainSpec | None = None, variant: str = "") -> ArmTemplate:
        """The arm of full fine-tuning."""
        weights = FullSpec(support=self.question.support)
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


def _ranks_and_full(build: _Builder) -> list[ArmTemplate]:
    """The ranks of the question; of a paper grid those that the smallest adapted matrix has room for."""
    ranks = build.question.ranks
    if build.question.grid.kind == "paper":
        ranks = tuple(rank for rank in ranks if rank <= _most_rank(build))
    return [*(build.lora(rank) for rank in ranks), build.full()]


def _learning_rate(build: _Builder) -> list[ArmTemplate]:
    """Alpha = 32 at every rank, full fine-tuning, and alpha = rank as the positive control of C3."""
    tied = [build.lora(rank, alpha=float(rank), variant="alpha = r") for rank in build.question.ranks if rank != 32]
    return [*_ranks_and_full(build), *tied]


def _early(build: _Builder) -> list[ArmTemplate]:
    return [build.lora(rank) for rank in build.question.ranks]


def _batch_size(build: _Builder) -> list[ArmTemplate]:
    """One epoch at every batch size; and, as control, every batch size for as many steps as the largest takes."""
    question = build.question
    if len(question.batch_sizes) < 2:
        raise SpecError("batch-size: needs at least two batch sizes to compare; give batch_sizes")
    examples = question.train.batch_size * (question.train.steps or 0)
    fewest = max(1, examples // max(question.batch_sizes))
    arms: list[ArmTemplate] = []
    for batch in question.batch_sizes:
        epoch = replace(question.train, batch_size=batch, steps=max(1, examples // batch))
        equal = replace(epoch, steps=fewest)
        for train, variant in ((epoch, ""), (equal, "equal steps")):
            if variant and train.steps == epoch.steps:
                continue  # the largest batch is its own control
            arms += [build.lora(rank, train=train, variant=variant) for rank in question.ranks]
            arms.append(build.full(train=train, variant=variant))
    return arms


def _layers(build: _Builder) -> list[ArmTemplate]:
    """Attention-only, MLP-only and both at equal parameters, and attention-only at four times as many.

    More of the wrong layers is not expected to help (paper, figure 4).
    """
    arms = _equal_layers(build)
    attention = arms[0].arm.rank
    assert attention is not None
    return [*arms, build.lora(4 * attention, targets=("attention",)), build.full()]


def _rl_layers(build: _Builder) -> list[ArmTemplate]:
    return [*_equal_layers(build), build.full()]


def _equal_layers(build: _Builder) -> list[ArmTemplate]:
    """Attention, MLPs, both; four times the first rank still fits."""
    params = {kind: _params(build, kind, 1) for kind in ("attention", "mlp", "all")}
    ranks = matched_ranks(params, build.question.ranks[0], most=_most_rank(build) // 4)
    return [build.lora(rank, targets=(kind,)) for kind, rank in ranks.items()]


def _most_rank(build: _Builder) -> int:
    """What the smallest adapted matrix has room for."""
    return min(min(matrix.d_in, matrix.d_out) for matrix in select(build.shape, ("all",), unembed=False))


def _certify(build: _Builder) -> list[ArmTemplate]:
    return [build.lora(build.question.ranks[0]), build.full()]


def _ratio(build: _Builder) -> list[ArmTemplate]:
    """Widths come from the question's models; alphas and run lengths cross them."""
    question = build.question
    arms: list[ArmTemplate] = []
    for steps in question.run_lengths or (question.train.steps or 1,):
        train = replace(question.train, steps=steps)
        rank = question.ranks[0]
        arms += [build.lora(rank, alpha=alpha, train=train) for alpha in question.alphas]
        arms.append(build.full(train=train))
    return arms


def _capacity(build: _Builder) -> list[ArmTemplate]:
    """Every rank on data sets of several sizes, each seen `train.epochs` times: how many bits does it hold?"""
    question = build.question
    if not question.loads or question.bits_per_example <= 0:
        raise SpecError("capacity: needs loads and bits_per_example; write a spec file, such as papers/laptop.toml")
    arms: list[ArmTemplate] = []
    for rank in question.ranks:
        params = _params(build, "all", rank)
        for load in question.loads:
            number = max(question.train.batch_size, round(load * params / question.bits_per_example))
            data = replace(
                question.data,
                limit=number + 2 * CAPACITY_HELD_OUT,
                validation_size=CAPACITY_HELD_OUT,
                test_size=CAPACITY_HELD_OUT,
            )
            steps = math.ceil(number * question.train.epochs / question.train.batch_size)
            arms.append(
                build.lora(
                    rank,
                    train=replace(question.train, steps=steps),
                    variant=f"load {load:g}",
                    data=data,
                    offered_bits=number * question.bits_per_example,
                )
            )
    return arms


CAPACITY_HELD_OUT = 4
"""Examples of each held-out split: nobody can guess them, so their loss says nothing and few will do."""


def _invariance(build: _Builder) -> list[ArmTemplate]:
    """One run, and the runs that (p, q) make of it: with eps 0, with corrected eps and decay, and uncorrected."""
    exact, usual = OptimSpec(eps=0.0), OptimSpec(eps=INVARIANCE_EPS, weight_decay=INVARIANCE_DECAY)
    arms = [
        _transformed(build, 1.0, 1.0, exact, "eps 0"),
        _transformed(build, 1.0, 1.0, usual, "corrected"),
    ]
    for p, q in product(INVARIANCE_FACTORS, repeat=2):
        corrected = replace(
            usual,
            eps=usual.eps / p,
            eps_b=usual.eps / q,
            weight_decay=usual.weight_decay / p,
            weight_decay_b=usual.weight_decay / q,
        )
        arms += [
            _transformed(build, p, q, exact, "eps 0"),
            _transformed(build, p, q, corrected, "corrected"),
            _transformed(build, p, q, usual, "uncorrected"),
        ]
    return arms


def _transformed(build: _Builder, p: float, q: float, optim: OptimSpec, kind: str) -> ArmTemplate:
    """The first rank with alpha / (p q), A p times as large, and the rates of A and B times p and q."""
    alpha = build.question.alphas[0] / (p * q)
    template = build.lora(build.question.ranks[0], alpha=alpha, variant=f"p {p:g}, q {q:g}, {kind}")
    (slot,) = template.run.slots
    assert isinstance(slot.weights, AdapterSpec)
    slot = replace(slot, weights=replace(slot.weights, init_scale=p), optim=optim)
    return replace(template, run=replace(template.run, slots=(slot,)), lr_factors=(p, q))


INVARIANCE_FACTORS = (0.5, 2.0, 4.0)
"""Powers of two, so that the scaled numbers are exact (science.md, C1)."""
INVARIANCE_EPS, INVARIANCE_DECAY = 1e-8, 0.01
"""Usual settings, which matter: uncorrected, the trajectory must differ."""


def _dynamics(build: _Builder) -> list[ArmTemplate]:
    train = replace(build.question.train, dynamics=True)
    return [build.lora(rank, train=train) for rank in build.question.ranks]


def _params(build: _Builder, kind: str, rank: int) -> int:
    return sum(matrix.adapter_params(rank) for matrix in select(build.shape, (kind,), unembed=False))


PROTOCOLS: dict[str, Callable[[_Builder], list[ArmTemplate]]] = {
    "rank": _ranks_and_full,
    "learning-rate": _learning_rate,
    "batch-size": _batch_size,
    "layers": _layers,
    "early": _early,
    "certify": _certify,
    "ratio": _ratio,
    "capacity": _capacity,
    "cost": _ranks_and_full,
    "invariance": _invariance,
    "dynamics": _dynamics,
    "rl": _ranks_and_full,
    "rl-layers": _rl_layers,
}
"""Protocols that compare arms over learning rates and seeds."""
