"""What the user should look at before starting: settings that run, but that the findings speak against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lowregret.planner.flops import break_even_rank
from lowregret.planner.information import judge_information
from lowregret.planner.targets import select
from lowregret.specs.adapter import AdapterSpec, FullSpec
from lowregret.specs.data import DataFacts
from lowregret.specs.plan import Information
from lowregret.specs.run import RunSpec, SlotSpec
from lowregret.specs.shape import MatrixShape, ModelShape

FEW_STEPS = 50
"""Below this the Adam moments hardly warm up and a wrong learning rate costs most."""

LARGE_BATCH = 64
"""LoRA pays more than FullFT for large batches (paper, figure 3: best at 32 and below, worse from 128)."""


def warnings_of(spec: RunSpec, *, shape: ModelShape, facts: DataFacts, information: Information) -> tuple[str, ...]:
    """All warnings of a resolved specification, one line each."""
    return (
        *_of_run(spec, shape, facts),
        *_of_alphas(spec),
        *(w for slot in spec.slots for w in _of_slot(slot, shape, information)),
    )


def alpha_is_tied(adapters: Sequence[AdapterSpec]) -> bool:
    """Alpha proportional to rank over several adapters, or equal to it (or twice it) in each.

    >>> alpha_is_tied([AdapterSpec(rank=8, alpha=16.0), AdapterSpec(rank=64, alpha=128.0)])
    True
    >>> alpha_is_tied([AdapterSpec(rank=8), AdapterSpec(rank=64)])
    False
    """
    scalings = {adapter.scaling for adapter in adapters}
    ranks = {adapter.rank for adapter in adapters}
    usual = all(adapter.scaling in (1.0, 2.0) and adapter.alpha != 32.0 for adapter in adapters)
    return bool(adapters) and (usual or (len(ranks) > 1 and len(scalings) == 1))


def is_attention_only(matrices: Iterable[MatrixShape]) -> bool:
    """Whether an adapter on these matrices leaves every MLP alone."""
    return {matrix.kind for matrix in matrices} <= {"attention", "unembed"}


def _of_run(spec: RunSpec, shape: ModelShape, facts: DataFacts) -> Iterator[str]:
    steps = spec.train.steps or 0
    lora = any(isinstance(slot.weights, AdapterSpec) for slot in spec.slots)
    if steps < FEW_STEPS:
        smaller = max(1, spec.train.batch_size * steps // FEW_STEPS)
        hint = f"a batch of {smaller} would give {FEW_STEPS}" if smaller < spec.train.batch_size else "train longer"
        yield f"train.steps: only {steps} steps; {hint}"
    if lora and spec.train.batch_size > LARGE_BATCH:
        yield f"train.batch_size: {spec.train.batch_size} is large for LoRA, which pays more for it than FullFT"
    if shape.max_length is not None and facts.longest > shape.max_length:
        yield f"data.max_length: the longest example has {facts.longest} tokens, the base takes {shape.max_length}"
    if facts.approximate:
        yield "data: token counts were given or assumed, not counted; so are the verdicts that rest on them"
    if shape.approximate:
        yield "model: the shape was assumed from hidden size and depth; counts are approximate"


def _of_alphas(spec: RunSpec) -> Iterator[str]:
    if alpha_is_tied([slot.weights for slot in spec.slots if isinstance(slot.weights, AdapterSpec)]):
        yield (
            "alpha is tied to the rank: the best learning rate then falls with rank (r^-0.4 to r^-0.5); "
            "alpha = 32 at every rank keeps it nearly the same"
        )


def _of_slot(slot: SlotSpec, shape: ModelShape, information: Information) -> Iterator[str]:
    if isinstance(slot.weights, FullSpec):
        if shape.num_params < 300_000_000:
            yield f"slot {slot.name}: FullFT below 300M parameters is touchy about its learning rate; sweep it"
        return
    matrices = select(shape, slot.weights.targets, unembed=slot.weights.unembed)
    if is_attention_only(matrices):
        yield f"slot {slot.name}: attention-only adapters are clearly worse at equal parameters; use all or mlp"
    if slot.optim.lr is not None and slot.optim.lr > 1e-2:
        yield f"slot {slot.name}: a learning rate of {slot.optim.lr:g} is beyond any that worked at alpha 32"
    capacity = judge_information(matrices, slot.weights.rank, information)
    if capacity.status == "UNDERCAPACITY":
        enough = capacity.smallest_rank
        remedy = f"rank {enough} suffices" if enough else "no rank suffices; expect it to fall behind FullFT"
        yield f"slot {slot.name}: UNDERCAPACITY, {capacity.reason}; {remedy}"
    even = break_even_rank(shape, matrices)
    if slot.weights.rank > even:
        yield f"slot {slot.name}: above rank {even:.0f} an adapter costs more arithmetic than full fine-tuning"
