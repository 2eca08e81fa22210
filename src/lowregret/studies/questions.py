"""From a question to its arms: what is compared, as runs of one slot whose learning rate and seed are still open.

One function a protocol; the arms themselves are made by `arm_builder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product

from lowregret.errors import SpecError
from lowregret.planner.targets import select
from lowregret.specs import AdapterSpec, HardwareSpec, ModelSpec, OptimSpec, QuestionSpec, TrainSpec
from lowregret.studies.arm_builder import REINFORCED, ArmTemplate, Base, Builder
from lowregret.studies.equal_parameters import matched_ranks
from lowregret.studies.swallowing import ADD, NEAREST


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
    builders = [Builder(question, base, bases[base.source], hardware) for base in question.models or (model,)]
    return tuple(template for builder in builders for template in PROTOCOLS[question.protocol](builder))


def _ranks_and_full(build: Builder) -> list[ArmTemplate]:
    """The ranks of the question; of a paper grid those that the smallest adapted matrix has room for."""
    ranks = build.question.ranks
    if build.question.grid.kind == "paper":
        ranks = tuple(rank for rank in ranks if rank <= _most_rank(build))
    return [*(build.lora(rank) for rank in ranks), build.full()]


def _learning_rate(build: Builder) -> list[ArmTemplate]:
    """Alpha = 32 at every rank, full fine-tuning, and alpha = rank as the positive control of C3."""
    tied = [build.lora(rank, alpha=float(rank), variant="alpha = r") for rank in build.question.ranks if rank != 32]
    return [*_ranks_and_full(build), *tied]


def _early(build: Builder) -> list[ArmTemplate]:
    return [build.lora(rank) for rank in build.question.ranks]


def _batch_size(build: Builder) -> list[ArmTemplate]:
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


def _layers(build: Builder) -> list[ArmTemplate]:
    """Attention-only, MLP-only and both at equal parameters, and attention-only at four times as many.

    More of the wrong layers is not expected to help (paper, figure 4).
    """
    arms = _equal_layers(build)
    attention = arms[0].arm.rank
    assert attention is not None
    return [*arms, build.lora(4 * attention, targets=("attention",)), build.full()]


def _rl_layers(build: Builder) -> list[ArmTemplate]:
    return [*_equal_layers(build), build.full()]


def _equal_layers(build: Builder) -> list[ArmTemplate]:
    """Attention, MLPs, both; four times the first rank still fits."""
    params = {kind: _params(build, kind, 1) for kind in ("attention", "mlp", "all")}
    ranks = matched_ranks(params, build.question.ranks[0], most=_most_rank(build) // 4)
    return [build.lora(rank, targets=(kind,)) for kind, rank in ranks.items()]


def _most_rank(build: Builder) -> int:
    """What the smallest adapted matrix has room for."""
    return min(min(matrix.d_in, matrix.d_out) for matrix in select(build.shape, ("all",), unembed=False))


def _certify(build: Builder) -> list[ArmTemplate]:
    return [build.lora(build.question.ranks[0]), build.full()]


def _ratio(build: Builder) -> list[ArmTemplate]:
    """Widths come from the question's models; alphas and run lengths cross them."""
    question = build.question
    arms: list[ArmTemplate] = []
    for train in _lengths(question):
        rank = question.ranks[0]
        arms += [build.lora(rank, alpha=alpha, train=train) for alpha in question.alphas]
        arms.append(build.full(train=train))
    return arms


def _lengths(question: QuestionSpec) -> list[TrainSpec]:
    return [replace(question.train, steps=steps) for steps in question.run_lengths or (question.train.steps or 1,)]


def _fidelity(build: Builder) -> list[ArmTemplate]:
    """Every rank and full fine-tuning in faithful and in usual arithmetic; what trains faithfully is measured in all.

    Forward fidelity is about given masters, and the faithful arm's are those that anybody wants. Full fine-tuning
    starts on bf16's grid, where published weights lie and where adapters have their base.
    """
    if build.hardware.dtype == "fp32":
        raise SpecError("fidelity: is about what bf16 swallows, and fp32 swallows nothing; give --dtype bf16")
    lengths = _lengths(build.question)
    longest = max(train.steps or 1 for train in lengths)
    for step in build.question.train.fidelity_at:
        if not 1 <= step <= longest:
            raise SpecError(f"fidelity: train.fidelity_at: no run has a step {step}; give steps from 1 to {longest}")
    arms: list[ArmTemplate] = []
    for asked in lengths:
        steps = asked.steps or 1
        at = tuple(step for step in asked.fidelity_at if step <= steps) or fidelity_steps(steps)
        measured, usual = replace(asked, fidelity_at=at), replace(asked, fidelity_at=())
        for rank in build.question.ranks:
            arms.append(build.lora(rank, train=measured))
            arms.append(build.lora(rank, train=usual, variant=ADD, arithmetic="add"))
        arms.append(build.full(train=measured, start="bf16"))
        arms.append(build.full(train=usual, variant=NEAREST, rounding="nearest", start="bf16"))
    return arms


def fidelity_steps(steps: int) -> tuple[int, ...]:
    """Half a decade apart, and the last.

    >>> fidelity_steps(8), fidelity_steps(100)
    ((1, 3, 8), (1, 3, 10, 30, 100))
    """
    decades = range(len(str(steps)))
    early = (factor * 10**decade for decade in decades for factor in (1, 3))
    return (*(step for step in early if step < steps), steps)


def _capacity(build: Builder) -> list[ArmTemplate]:
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


def _invariance(build: Builder) -> list[ArmTemplate]:
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


def _transformed(build: Builder, p: float, q: float, optim: OptimSpec, kind: str) -> ArmTemplate:
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


def _dynamics(build: Builder) -> list[ArmTemplate]:
    train = replace(build.question.train, dynamics=True)
    return [build.lora(rank, train=train) for rank in build.question.ranks]


def _params(build: Builder, kind: str, rank: int) -> int:
    return sum(matrix.adapter_params(rank) for matrix in select(build.shape, (kind,), unembed=False))


PROTOCOLS: dict[str, Callable[[Builder], list[ArmTemplate]]] = {
    "rank": _ranks_and_full,
    "learning-rate": _learning_rate,
    "batch-size": _batch_size,
    "layers": _layers,
    "early": _early,
    "certify": _certify,
    "ratio": _ratio,
    "fidelity": _fidelity,
    "capacity": _capacity,
    "cost": _ranks_and_full,
    "invariance": _invariance,
    "dynamics": _dynamics,
    "rl": _ranks_and_full,
    "rl-layers": _rl_layers,
}
"""Protocols that compare arms over learning rates and seeds."""
