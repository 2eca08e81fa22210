"""Is a run's specification sound? Ranges first, then what only the model's shape and the data can tell.

Every failure is a `SpecError` of one line that names the field and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lowregret.errors import DataError, SpecError
from lowregret.planner.capacity import MAX_RANK
from lowregret.planner.ranges import at_least, not_negative, positive, seed
from lowregret.planner.targets import select
from lowregret.planner.validate_rl import validate_rl
from lowregret.specs.adapter import AdapterSpec, FullSpec
from lowregret.specs.data import DataFacts, DataSpec
from lowregret.specs.hardware import HardwareSpec
from lowregret.specs.optim import OptimSpec
from lowregret.specs.run import RunSpec, SlotSpec, TrainSpec
from lowregret.specs.shape import MatrixShape, ModelShape

TASKS = ("sft", "rl")
SLOT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
"""A slot's name is a folder's name too."""


def validate_spec(spec: RunSpec) -> None:
    """Check every range that needs neither model nor data.

    Raises:
        SpecError: a value is out of range or two slots have one name.
    """
    if spec.task not in TASKS:
        raise SpecError(f"task: {spec.task!r} is not known; give {' or '.join(TASKS)}")
    if not spec.slots:
        raise SpecError("slots: nothing to train; give a rank (--rank 8) or full fine-tuning (--full)")
    names = [slot.name for slot in spec.slots]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"slots: the name {name!r} stands twice; give each slot its own name")
    for slot in spec.slots:
        _slot(slot)
    _train(spec.train)
    _data(spec.data)
    _hardware(spec.hardware)
    validate_rl(spec)


def validate_against_shape(spec: RunSpec, shape: ModelShape) -> None:
    """Check ranks and targets of a sound spec against the base's matrices.

    Raises:
        SpecError: a target matches nothing, a rank is larger than a matrix, a tied matrix is asked for by itself.
    """
    for slot in spec.slots:
        field = f"slots.{slot.name}.weights"
        weights = slot.weights
        if isinstance(weights, AdapterSpec):
            matrices = select(shape, weights.targets, unembed=weights.unembed, field=f"{field}.targets")
            check_rank(weights.rank, matrices, field=f"{field}.rank")
        elif weights.support == "matched":
            matrices = select(shape, weights.targets, unembed=weights.unembed, field=f"{field}.targets")
            if shape.tied and any(matrix.kind == "unembed" for matrix in matrices):
                raise SpecError(f"{field}.unembed: the unembedding is tied to the embedding here; leave unembed off")


def validate_against_data(spec: RunSpec, facts: DataFacts) -> None:
    """Check that there is something to train on.

    Raises:
        DataError: no examples, or no completion tokens.
        SpecError: a step's batch holds more examples than there are.
    """
    if facts.num_examples < 1:
        raise DataError(f"data.source: {spec.data.source!r} has no training examples; check filters and max_length")
    if facts.num_completion_tokens < 1:
        raise DataError(f"data.source: {spec.data.source!r} has no completion tokens; check format and columns")
    if spec.train.batch_size > facts.num_examples and not facts.approximate:
        raise SpecError(
            f"train.batch_size: {spec.train.batch_size} is more than the {facts.num_examples} training examples; "
            "lower it"
        )


def check_rank(rank: int, matrices: Sequence[MatrixShape], *, field: str = "rank") -> None:
    """Check a rank against what it would adapt.

    Raises:
        SpecError: it is below 1, beyond 512, or beyond the smaller side of a matrix.
    """
    _rank_range(rank, field)
    for matrix in matrices:
        side = min(matrix.d_in, matrix.d_out)
        if matrix.rank_at(rank) > side:
            allowed = side * matrix.active_experts
            raise SpecError(
                f"{field}: {rank} is larger than {matrix.name} ({matrix.d_out} x {matrix.d_in}) allows; "
                f"give at most {allowed} or leave {matrix.name} out of the targets"
            )


def _slot(slot: SlotSpec) -> None:
    field = f"slots.{slot.name}"
    if not SLOT_NAME.fullmatch(slot.name):
        raise SpecError(f"slots: {slot.name!r} can't name a folder; use letters, digits, '.', '_', '+' and '-'")
    seed(slot.data_seed, f"{field}.data_seed")
    _optim(slot.optim, f"{field}.optim")
    if isinstance(slot.weights, AdapterSpec):
        _adapter(slot.weights, f"{field}.weights")
    else:
        _full(slot.weights, f"{field}.weights")


def check_arithmetic(slots: Sequence[SlotSpec], dtype: str) -> None:
    """Check that an arithmetic that was asked for is one in which something differs.

    Raises:
        SpecError: an adapter is to be added onto a rounded base, and nothing is rounded.
    """
    for slot in slots:
        if isinstance(slot.weights, AdapterSpec) and slot.weights.arithmetic != "accumulator" and dtype != "bf16":
            raise SpecError(
                f"slots.{slot.name}.weights.arithmetic: {slot.weights.arithmetic!r} differs from the default in bf16 "
                f"only; give --dtype bf16 or leave it out"
            )


def check_fidelity(train: TrainSpec, dtype: str, steps: int) -> None:
    """Check that there is something to measure, and a step to measure it after.

    Raises:
        SpecError: fidelity is asked of fp32, in which every arithmetic is the same sum, or after the last step.
    """
    if train.fidelity_at and dtype != "bf16":
        raise SpecError(
            f"train.fidelity_at: {dtype} swallows nothing, so there is nothing to measure; give --dtype bf16 or leave "
            "it out"
        )
    for step in train.fidelity_at:
        if step > steps:
            raise SpecError(f"train.fidelity_at: there is no step {step} in a run of {steps}; leave it out")


def _adapter(spec: AdapterSpec, field: str) -> None:
    _rank_range(spec.rank, f"{field}.rank")
    positive(spec.alpha, f"{field}.alpha", "32 is the default")
    positive(spec.init_scale, f"{field}.init_scale", "1 is the default")
    seed(spec.init_seed, f"{field}.init_seed")
    _targets(spec.targets, f"{field}.targets")


def _full(spec: FullSpec, field: str) -> None:
    _targets(spec.targets, f"{field}.targets")
    seed(spec.rounding_seed, f"{field}.rounding_seed")


def _optim(spec: OptimSpec, field: str) -> None:
    for name, lr in (("lr", spec.lr), ("lr_b", spec.lr_b)):
        if lr is not None:
            positive(lr, f"{field}.{name}", "1e-4 to 1e-3 is usual for LoRA; leave it out for the planner's choice")
    for name, value in (("eps", spec.eps), ("eps_b", spec.eps_b)):
        if value is not None:
            not_negative(value, f"{field}.{name}", "1e-12 is the default")
    for name, value in (("weight_decay", spec.weight_decay), ("weight_decay_b", spec.weight_decay_b)):
        if value is not None:
            not_negative(value, f"{field}.{name}", "0 is the default")
    for beta in spec.betas:
        if not 0.0 <= beta < 1.0:
            raise SpecError(f"{field}.betas: {beta} must lie in [0, 1); (0.9, 0.999) is the default")
    if spec.clip_norm is not None:
        positive(spec.clip_norm, f"{field}.clip_norm", "leave it out for no clipping")


def _train(spec: TrainSpec) -> None:
    if spec.steps is not None:
        at_least(spec.steps, 1, "train.steps", "leave it out to train for whole epochs")
    positive(spec.epochs, "train.epochs", "1 is the default")
    at_least(spec.batch_size, 1, "train.batch_size", "8 is the default")
    at_least(spec.eval_every, 1, "train.eval_every", "100 is the default")
    at_least(spec.checkpoint_every, 1, "train.checkpoint_every", "100 is the default")
    at_least(spec.num_samples, 0, "train.num_samples", "0 shows none")
    for step in spec.fidelity_at:
        at_least(step, 1, "train.fidelity_at", "there is no update before the first step")
    if spec.drop_dominated is not None and spec.drop_dominated <= 1.0:
        raise SpecError(
            f"train.drop_dominated: {spec.drop_dominated} must exceed 1; leave it out to stop no slot early"
        )
    at_least(spec.schedule.warmup, 0, "train.schedule.warmup", "0 is no warm-up")
    if not 0.0 <= spec.schedule.final <= 1.0:
        raise SpecError(f"train.schedule.final: {spec.schedule.final} must lie in [0, 1]; 0 decays to nothing")
    if spec.steps is not None:
        check_warmup(spec, spec.steps)


def check_warmup(spec: TrainSpec, steps: int) -> None:
    """Check that the warm-up ends before the run does.

    Raises:
        SpecError: it does not.
    """
    if spec.schedule.warmup >= steps:
        raise SpecError(
            f"train.schedule.warmup: {spec.schedule.warmup} steps leave nothing of a run of {steps}; "
            f"give fewer than {steps}"
        )


def _data(spec: DataSpec) -> None:
    at_least(spec.max_length, 2, "data.max_length", "2048 is the default")
    for name, value in (("validation_size", spec.validation_size), ("test_size", spec.test_size)):
        if value is not None:
            at_least(value, 1, f"data.{name}", "leave it out for 5 %")
    if spec.limit is not None:
        at_least(spec.limit, 1, "data.limit", "leave it out for all rows")


def _hardware(spec: HardwareSpec) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", spec.device):
        raise SpecError(f"hardware.device: {spec.device!r} is not known; give auto, cpu, cuda, cuda:1 or mps")
    for name, value in (("threads", spec.threads), ("tokens_per_microbatch", spec.tokens_per_microbatch)):
        if value is not None:
            at_least(value, 1, f"hardware.{name}", "leave it out for the planner's choice")
    if spec.memory_bytes is not None:
        at_least(spec.memory_bytes, 1, "hardware.memory_bytes", "leave it out for what is free")


def _rank_range(rank: int, field: str) -> None:
    if not 1 <= rank <= MAX_RANK:
        raise SpecError(f"{field}: {rank} must lie in 1..{MAX_RANK}; 8 to 64 is usual")


def _targets(targets: Sequence[str], field: str) -> None:
    if not targets or not all(targets):
        raise SpecError(f"{field}: is empty; give all, attention, mlp or module names such as q_proj")
