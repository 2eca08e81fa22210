"""The planner as a library: a verdict on a rank, and a whole plan, from a few numbers or a model's shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from lowregret.errors import SpecError
from lowregret.planner.capacity import BITS_PER_PARAMETER, BITS_PER_TOKEN, Status, data_bits, judge
from lowregret.planner.fits import memory_rank
from lowregret.planner.information import information_of
from lowregret.planner.rank import suggest_rank
from lowregret.planner.resolve import resolve
from lowregret.planner.shapes import read_shape
from lowregret.planner.targets import select
from lowregret.planner.validate import check_rank
from lowregret.specs.adapter import AdapterSpec
from lowregret.specs.data import DataFacts, DataSpec
from lowregret.specs.hardware import DeviceFacts
from lowregret.specs.model import ModelSpec
from lowregret.specs.optim import OptimSpec, ScheduleSpec
from lowregret.specs.plan import ResolvedPlan
from lowregret.specs.rl import RLSpec
from lowregret.specs.run import RunSpec, SlotSpec, TrainSpec
from lowregret.specs.shape import MatrixShape, ModelShape

ASSUMED_MLP = 3.5
"""Gated MLP's width over the hidden size where only that is known (Llama-3.1-8B)."""
ASSUMED_KV = 4
"""Query channels over key (and value) channels where only the hidden size is known (Llama-3.1-8B)."""
ASSUMED_VOCABULARY = 128_256
ASSUMED_HEAD_DIM = 128

STATED_MACHINE = DeviceFacts(kind="cuda", memory_bytes=80 << 30, bf16_fast=True, threads=8)
"""Machine of `recommend` where none is given: one accelerator of 80 GiB."""


@dataclass(frozen=True, kw_only=True)
class CapacityResult(Mapping[str, object]):
    """A capacity verdict, as attributes or as a mapping.

    >>> result = validate_capacity(rank=8, hidden_dim=4096, num_layers=32, dataset_tokens=1_000_000)
    >>> result.status, result["status"]
    ('OK', 'OK')
    """

    status: Status
    message: str
    suggested_rank: int
    """Smallest power of two that holds the data's bits."""
    adapter_params: int
    capacity_bits: float
    data_bits: float
    approximate: bool
    """True where the shape was assumed from hidden size and depth."""

    def __getitem__(self, key: str) -> object:
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self))

    def __len__(self) -> int:
        return len(fields(self))

    def __contains__(self, key: object) -> bool:
        return any(field.name == key for field in fields(self))


def validate_capacity(
    *,
    rank: int,
    dataset_tokens: int,
    hidden_dim: int | None = None,
    num_layers: int | None = None,
    shape: ModelShape | None = None,
    targets: tuple[str, ...] = ("all",),
    unembed: bool = False,
    bits_per_token: float = BITS_PER_TOKEN,
    bits_per_parameter: float = BITS_PER_PARAMETER,
) -> CapacityResult:
    """Does a LoRA of this rank hold this many completion tokens?

    Args:
        rank: of the adapter.
        dataset_tokens: completion tokens of one epoch.
        hidden_dim: width, where there is no `shape`: a gated MLP of 3.5x and keys and values of 1/4 are assumed.
        num_layers: depth, where there is no `shape`.
        shape: of the base (`read_shape`), for exact counts.
        targets: what the adapter adapts.
        unembed: the unembedding too.
        bits_per_token: information in a completion token.
        bits_per_parameter: what a parameter holds.

    Raises:
        SpecError: neither a shape nor width and depth, a rank out of range, or negative tokens.
    """
    if shape is None:
        if hidden_dim is None or num_layers is None:
            raise SpecError("shape: is missing; give a shape (read_shape), or hidden_dim and num_layers")
        shape = assumed_shape(hidden_dim, num_layers)
    if dataset_tokens < 0:
        raise SpecError(f"dataset_tokens: {dataset_tokens} must be 0 or more; count the completion tokens of one epoch")
    matrices = select(shape, targets, unembed=unembed)
    check_rank(rank, matrices)
    verdict = judge(
        matrices,
        rank=rank,
        tokens=dataset_tokens,
        bits_per_token=bits_per_token,
        bits_per_parameter=bits_per_parameter,
    )
    facts = _facts(dataset_tokens, max(1, dataset_tokens))
    suggestion = suggest_rank(
        shape,
        facts,
        targets=targets,
        unembed=unembed,
        bits=data_bits(dataset_tokens, bits_per_token=bits_per_token),
        bits_per_parameter=bits_per_parameter,
    )
    label = " (approximate: gated MLP of 3.5x, keys and values of 1/4 assumed)" if shape.approximate else ""
    return CapacityResult(
        status=verdict.status,
        message=f"{verdict.status}: {verdict.reason}{label}",
        suggested_rank=suggestion.rank,
        adapter_params=verdict.params,
        capacity_bits=verdict.bits,
        data_bits=verdict.data_bits,
        approximate=shape.approximate,
    )


def recommend(
    *,
    model: str | Path,
    tokens: int,
    num_examples: int | None = None,
    longest: int | None = None,
    shape: ModelShape | None = None,
    task: str = "sft",
    rank: int | None = None,
    batch_size: int = TrainSpec().batch_size,
    steps: int | None = None,
    schedule: ScheduleSpec = ScheduleSpec(),  # noqa: B008 - frozen
    hardware: DeviceFacts = STATED_MACHINE,
) -> ResolvedPlan:
    """A plan for one adapter on a model, from the number of completion tokens.

    Args:
        model: folder with a config.json, or any name where `shape` is given.
        tokens: completion tokens of one epoch.
        num_examples: of one epoch; None: 256 completion tokens each are assumed.
        longest: tokens of the longest example; None: four times the mean.
        shape: of the base; None: read from the folder.
        task: `sft` or `rl`.
        rank: of the adapter; None: the suggested one.
        batch_size: sequences a step.
        steps: optimizer steps; None: one epoch.
        schedule: of the learning rate.
        hardware: where it will run; its memory is what the plan must fit into.

    Raises:
        SpecError, DataError, CapacityError: as `resolve`.
    """
    shape = shape or read_shape(Path(model))
    facts = stated_facts(tokens, num_examples=num_examples, longest=longest)
    spec = RunSpec(
        task=task,
        model=ModelSpec(source=str(model)),
        data=DataSpec(source=f"{tokens} tokens"),
        slots=(),
        rl=RLSpec(rewards=()) if task == "rl" else None,
        train=TrainSpec(batch_size=batch_size, steps=steps, schedule=schedule),
    )
    if rank is None:
        bits = information_of(spec, facts).bits
        most = memory_rank(spec, shape, facts, hardware)
        rank = suggest_rank(shape, facts, task=task, bits=bits, memory_rank=most).rank
    slot = SlotSpec(name=f"r{rank}", weights=AdapterSpec(rank=rank), optim=OptimSpec())
    spec = replace(spec, slots=(slot,))
    return resolve(spec, shape=shape, facts=facts, hardware=hardware)


def stated_facts(tokens: int, *, num_examples: int | None = None, longest: int | None = None) -> DataFacts:
    """Counts of data that is not at hand (`--tokens`): completions of 256 tokens behind prompts as long.

    >>> stated_facts(25_600).num_examples
    100
    """
    if tokens < 1:
        raise SpecError(f"tokens: {tokens} must be at least 1; give the completion tokens of one epoch")
    examples = num_examples or max(1, round(tokens / 256))
    mean = 2 * tokens / examples
    return DataFacts(
        num_examples=examples,
        num_tokens=2 * tokens,
        num_completion_tokens=tokens,
        longest=longest or max(2, min(2048, round(4 * mean))),
        approximate=True,
    )


def assumed_shape(hidden_size: int, num_layers: int) -> ModelShape:
    """A shape from width and depth alone: queries and output square, keys and values a quarter, a gated MLP of 3.5x.

    Raises:
        SpecError: width or depth is not positive.
    """
    for name, value in (("hidden_dim", hidden_size), ("num_layers", num_layers)):
        if value < 1:
            raise SpecError(f"{name}: {value} must be at least 1; take it from the model's config.json")
    keys, inner = max(1, hidden_size // ASSUMED_KV), round(ASSUMED_MLP * hidden_size)
    layers = tuple(range(num_layers))
    sizes = (
        ("q_proj", "attention", hidden_size, hidden_size),
        ("k_proj", "attention", hidden_size, keys),
        ("v_proj", "attention", hidden_size, keys),
        ("o_proj", "attention", hidden_size, hidden_size),
        ("gate_proj", "mlp", hidden_size, inner),
        ("up_proj", "mlp", hidden_size, inner),
        ("down_proj", "mlp", inner, hidden_size),
    )
    parents = {"attention": "self_attn", "mlp": "mlp"}
    matrices = tuple(
        MatrixShape(
            name=name,
            kind="attention" if kind == "attention" else "mlp",
            d_in=d_in,
            d_out=d_out,
            path=f"model.layers.{{layer}}.{parents[kind]}.{name}",
            layers=layers,
        )
        for name, kind, d_in, d_out in sizes
    )
    head = MatrixShape(name="lm_head", kind="unembed", d_in=hidden_size, d_out=ASSUMED_VOCABULARY, path="lm_head")
    head_dim = min(ASSUMED_HEAD_DIM, hidden_size)
    heads = max(1, hidden_size // head_dim)
    return ModelShape(
        model_type="assumed",
        hidden_size=hidden_size,
        num_layers=num_layers,
        vocab_size=ASSUMED_VOCABULARY,
        num_heads=heads,
        num_kv_heads=max(1, heads // ASSUMED_KV),
        head_dim=head_dim,
        tied=False,
        matrices=(*matrices, head),
        embedding_params=ASSUMED_VOCABULARY * hidden_size,
        other_params=(2 * num_layers + 1) * hidden_size,
        norm_channels=2 * hidden_size,
        source="assumed",
    )


def _facts(completion_tokens: int, tokens: int) -> DataFacts:
    return DataFacts(
        num_examples=1, num_tokens=tokens, num_completion_tokens=completion_tokens, longest=tokens, approximate=True
    )
