"""Peak memory of a run by part, before anything is loaded: an upper bound of what this package's engine holds.

The engine packs tokens without padding, keeps the base once for all adapters, and holds fp32 masters, gradients and
Adam moments for what trains. Parts that are held throughout add up; activations and work space are those of the
larger lane, because lanes run one after another. The constants that stand for measurement are `Constants`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lowregret.planner.activations import FAST_FAMILIES, FP32_BYTES, activation_bytes, fast_workspace
from lowregret.planner.capacity import adapter_params
from lowregret.planner.targets import select
from lowregret.specs.adapter import AdapterSpec, FullSpec
from lowregret.specs.shape import MatrixShape, ModelShape

DType = Literal["bf16", "fp32"]
BaseFormat = Literal["bf16", "fp32", "nf4"]

BYTES = {"bf16": 2, "fp32": FP32_BYTES}
STORED: Mapping[str | None, tuple[str, int]] = {
    "BF16": ("bf16", 2),
    "F16": ("fp16", 2),
    "F32": ("fp32", 4),
    "F64": ("fp64", 8),
}
"""Formats of model files (`ModelShape.stored`) and their bytes; any other counts as the base's own."""

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Per weight: 4 bits, an 8-bit scale for 64 weights, and a 32-bit one for 256 scales (double quantisation)."""

COLUMN_MULTIPLE = 16
"""Adapter columns of a matrix are padded to this (`adapters/grouped.py`)."""

LOGITS_BYTES, LOGITS_BYTES_CUDA = 64 << 20, 512 << 20
"""fp32 bytes of one chunk of logits (`models/causal_lm.py`)."""
MIN_LOGITS_ROWS = 32
CACHE_MULTIPLE = 32
"""Positions of a row of the sampler's cache are rounded up to this (`models/kv_cache.py`)."""
ROUNDING_SHARE, MOST_ROUNDING = 16, 128
"""A slot's rows are rounded up by less than one in so many, and by at most so many (`data/packing.py`)."""


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What counting does not give; set against the measured runs in `tests/planner/test_memory.py`.

    >>> Constants().logits_copies
    2.5
    """

    runtime_cpu: int = 600 << 20
    """Interpreter, torch, transformers, tokenizer and memory-mapped data of a CPU process (about 430 MiB), and what
    builds up over a run: compiled products, logs, gaps between blocks."""
    runtime_cuda: int = 600 << 20
    """CUDA context and cuBLAS work space on the device."""
    logits_copies: float = 2.5
    """Buffers of a chunk of logits alive at once, in fp32 chunks: logits, and without a compiler their fp32 copy, which
    becomes the gradient, and the gradient in bf16."""
    transient_copies: float = 2.0
    """Input and output of the widest matrix that the backward holds beside what is saved."""
    held: float = 1.05
    """Allocator's share on what is held throughout."""
    passing: float = 1.12
    """The same on activations and work space, whose many sizes leave gaps (`benchmarks/memory.py`)."""


CONSTANTS = Constants()

MAPPED = "mapped_file"
"""Part of the memory that counts as resident but can be taken back: pages of the model's file."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of the completions that a sampler decodes side by side.

    >>> Cache(rows=64, length=512).rows
    64
    """

    rows: int
    length: int
    """Tokens of the longest prompt and the longest completion."""


@dataclass(frozen=True, kw_only=True)
class MemoryQuestion:
    """A run as far as its memory goes.

    >>> MemoryQuestion(slots=(AdapterSpec(rank=8),), dtype="bf16", tokens=2048).device
    'cpu'
    """

    slots: Sequence[AdapterSpec | FullSpec]
    """What trains: all adapters share one base, each full fine-tuning has its own."""
    dtype: DType
    """Of base weights and activations."""
    tokens: int
    """Tokens of one micro-batch."""
    device: str = "cpu"
    bf16_fast: bool = False
    """Whether the device multiplies bf16 in hardware (`DeviceFacts.bf16_fast`): a CPU that does attends in bf16."""
    checkpointing: bool = False
    """Whether only layer inputs are kept for the backward."""
    base: BaseFormat | None = None
    """Format in which the frozen base is stored; None: `dtype`."""
    cache: Cache | None = None
    """The sampler's, in RL."""
    fidelity: bool = False
    """Whether the run measures forward fidelity, for which it holds an fp32 copy of the base and a merged one."""


def memory(shape: ModelShape, question: MemoryQuestion, *, constants: Constants = CONSTANTS) -> dict[str, int]:
    """Bytes by part, and their `total`.

    Parts: weights, adapters and full_masters (fp32), gradients, optimizer, working_copies, fidelity, activations,
    logits, workspace, kv_cache, packed_weights, mapped_file, runtime. What the sampler holds is gone when the learner
    computes; it is added all the same, since an allocator need not have given it back.
    """
    adapters = [slot for slot in question.slots if isinstance(slot, AdapterSpec)]
    fulls = [slot for slot in question.slots if isinstance(slot, FullSpec)]
    columns = _columns(shape, adapters)
    held = _held(shape, question, adapters, fulls, columns)
    passing = {
        "activations": _activation_bytes(shape, question, columns, bool(adapters), fulls),
        "logits": int(_logits_bytes(shape, question) * constants.logits_copies),
        "workspace": _workspace_bytes(shape, question, columns, fulls, constants),
        "kv_cache": _cache_bytes(shape, question),
        "packed_weights": _packed_bytes(shape, question, adapters),
    }
    parts = {name: int(size * constants.held) for name, size in held.items()}
    parts |= {name: int(size * constants.passing) for name, size in passing.items()}
    on_device = question.device.startswith("cuda")
    parts["runtime"] = constants.runtime_cuda if on_device else constants.runtime_cpu
    parts[MAPPED] = 0 if on_device else _mapped_bytes(shape, question, columns, parts)
    parts["total"] = sum(parts.values())
    return parts


def _mapped_bytes(
    shape: ModelShape, question: MemoryQuestion, columns: Sequence[int], others: Mapping[str, int]
) -> int:
    """Pages of the model's file that are resident when the run holds most.

    Where the file has the base's own format its pages are the base, but for the adapted matrices: those are copies, and
    what they were copied from stays mapped. From another format all weights are converted, and the file is let go once
    they are: then only a loading that takes more than all of the run adds to the peak.
    """
    work = BYTES[question.dtype]
    stored, size = STORED.get(shape.stored, (question.dtype, work))
    if stored == question.dtype:
        return sum(m.num_weights for _, m in _sites(shape, columns)) * work
    loading = shape.num_params * (work + size)
    return max(0, others["runtime"] + loading - sum(others.values()))


def _held(
    shape: ModelShape,
    question: MemoryQuestion,
    adapters: Sequence[AdapterSpec],
    fulls: Sequence[FullSpec],
    columns: Sequence[int],
) -> dict[str, int]:
    """What is held throughout the run."""
    work = BYTES[question.dtype]
    sites = _sites(shape, columns)
    in_adapters = sum(adapter_params(select(shape, a.targets, unembed=a.unembed), a.rank) for a in adapters)
    in_full = [full_params(shape, spec) for spec in fulls]
    trained = in_adapters + sum(in_full)
    copies = sum(columns[index] * (m.d_in + m.d_out + columns[index]) * m.count * work for index, m in sites)
    if any(m.kind == "unembed" for _, m in sites) and shape.tied:
        copies += shape.embedding_params * work  # a folded head no longer shares the embedding's memory
    masters = sum(in_full) * FP32_BYTES
    if question.dtype == "bf16":
        copies += shape.num_params * len(fulls) * work
    else:
        masters += sum(shape.num_params - params for params in in_full) * FP32_BYTES
    return {
        "weights": _base_bytes(shape, question) if adapters else 0,
        "adapters": in_adapters * FP32_BYTES,
        "full_masters": masters,
        "gradients": trained * FP32_BYTES,
        "optimizer": 2 * trained * FP32_BYTES,
        "working_copies": copies,
        # For the while of a measurement: fp32 with folded adapters, and bf16 with merged ones.
        "fidelity": (FP32_BYTES + work) * shape.num_params + 2 * copies if question.fidelity else 0,
    }


def needed_bytes(parts: dict[str, int]) -> int:
    """What must be free: the total without the pages of the model's file, which the system takes back at will.

    >>> needed_bytes({"weights": 5, "mapped_file": 2, "total": 7})
    5
    """
    return parts["total"] - parts[MAPPED]


def full_params(shape: ModelShape, spec: FullSpec) -> int:
    """Parameters that a full fine-tuning trains."""
    if spec.support == "all":
        return shape.num_params
    return sum(matrix.num_weights for matrix in select(shape, spec.targets, unembed=spec.unembed))


def largest_micro_batch(shape: ModelShape, question: MemoryQuestion, *, memory_bytes: int) -> int:
    """Most tokens of a micro-batch that fit; 0 where not even one does."""
    return _largest(lambda tokens: _fits(shape, _with_tokens(question, tokens), memory_bytes), 1 << 22)


def largest_rank_that_fits(shape: ModelShape, question: MemoryQuestion, *, memory_bytes: int, limit: int) -> int:
    """Largest rank of the question's first adapter that fits, up to `limit`; 0 where rank 1 does not."""

    def fits(rank: int) -> bool:
        first = question.slots[0]
        assert isinstance(first, AdapterSpec)
        slot = AdapterSpec(rank=rank, targets=first.targets, unembed=first.unembed)
        return _fits(shape, _with_slots(question, (slot, *question.slots[1:])), memory_bytes)

    return _largest(fits, limit)


def _fits(shape: ModelShape, question: MemoryQuestion, memory_bytes: int) -> bool:
    return needed_bytes(memory(shape, question)) <= memory_bytes


def _with_tokens(question: MemoryQuestion, tokens: int) -> MemoryQuestion:
    return replace(question, tokens=tokens)


def _with_slots(question: MemoryQuestion, slots: Sequence[AdapterSpec | FullSpec]) -> MemoryQuestion:
    return replace(question, slots=slots)


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """Largest number in 0..limit that fits, where all smaller ones fit too."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _columns(shape: ModelShape, adapters: Sequence[AdapterSpec]) -> list[int]:
    """Adapter columns of each matrix of the shape: the ranks of all slots side by side, padded."""
    columns = [0] * len(shape.matrices)
    index_of = {matrix.path: index for index, matrix in enumerate(shape.matrices)}
    for adapter in adapters:
        for matrix in select(shape, adapter.targets, unembed=adapter.unembed):
            columns[index_of[matrix.path]] += matrix.rank_at(adapter.rank)
    return [-(-number // COLUMN_MULTIPLE) * COLUMN_MULTIPLE for number in columns]


def _sites(shape: ModelShape, columns: Sequence[int]) -> list[tuple[int, MatrixShape]]:
    return [(index, matrix) for index, matrix in enumerate(shape.matrices) if columns[index]]


def _activation_bytes(
    shape: ModelShape, question: MemoryQuestion, columns: Sequence[int], adapters: bool, fulls: Sequence[FullSpec]
) -> int:
    """Of the larger lane: the bank, or a full fine-tuning."""
    none = [0] * len(shape.matrices)
    lanes = [(columns, False, False)] if adapters else []
    lanes += [(none, True, spec.support == "all") for spec in fulls]
    return max(
        activation_bytes(
            shape,
            tokens=_rows(question),
            work=BYTES[question.dtype],
            columns=lane_columns,
            full=full,
            norms=norms,
            checkpointing=question.checkpointing,
            device=question.device,
            bf16_fast=question.bf16_fast,
        )
        for lane_columns, full, norms in lanes
    )


def _rows(question: MemoryQuestion) -> int:
    """Rows of a micro-batch: its tokens, and what rounds up each slot's rows (`data/packing.py`)."""
    return question.tokens + min(question.tokens // ROUNDING_SHARE, MOST_ROUNDING * len(question.slots))


def _base_bytes(shape: ModelShape, question: MemoryQuestion) -> int:
    work = BYTES[question.dtype]
    if question.base != "nf4":
        return shape.num_params * BYTES[question.base or question.dtype]
    packed = sum(m.num_weights for m in shape.matrices if m.kind in ("attention", "mlp", "expert"))
    return int(packed * NF4_BYTES) + (shape.num_params - packed) * work


def _cache_bytes(shape: ModelShape, question: MemoryQuestion) -> int:
    """Keys and values of every row, position and layer."""
    if question.cache is None:
        return 0
    length = -(-question.cache.length // CACHE_MULTIPLE) * CACHE_MULTIPLE
    channels = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    return question.cache.rows * length * channels * BYTES[question.dtype]


def _packed_bytes(shape: ModelShape, question: MemoryQuestion, adapters: Sequence[AdapterSpec]) -> int:
    """Matrices and head in the order in which a decoding step reads them, and adapters in fp32 (`models/packed.py`)."""
    if question.cache is None or question.device != "cpu" or shape.model_type not in FAST_FAMILIES:
        return 0
    matrices = sum(m.num_weights for m in shape.matrices if m.kind != "unembed")
    head = shape.vocab_size * shape.hidden_size
    in_adapters = sum(adapter_params(select(shape, a.targets, unembed=a.unembed), a.rank) for a in adapters)
    return (matrices + head) * BYTES[question.dtype] + in_adapters * FP32_BYTES


def _logits_bytes(shape: ModelShape, question: MemoryQuestion) -> int:
    """fp32 bytes of one chunk of logits."""
    size = LOGITS_BYTES_CUDA if question.device.startswith("cuda") else LOGITS_BYTES
    of_row = shape.vocab_size * FP32_BYTES
    return max(MIN_LOGITS_ROWS, size // of_row // MIN_LOGITS_ROWS * MIN_LOGITS_ROWS) * of_row


def _workspace_bytes(
    shape: ModelShape,
    question: MemoryQuestion,
    columns: Sequence[int],
    fulls: Sequence[FullSpec],
    constants: Constants,
) -> int:
    """Buffers that live for one operation: of the backward, of the head, and of the update of the largest weight."""
    work = BYTES[question.dtype]
    body = [(i, m) for i, m in enumerate(shape.matrices) if m.kind != "unembed"]
    widest = max(m.d_in + m.d_out + 2 * columns[i] for i, m in body)
    if shape.model_type in FAST_FAMILIES:
        backward = _rows(question) * fast_workspace(shape) * (FP32_BYTES if question.device == "cpu" else work)
    else:
        backward = int(constants.transient_copies * _rows(question) * widest * work)
    hidden = 4 * _rows(question) * shape.hidden_size * work
    dequantised = max(m.d_in * m.d_out for _, m in body) * work if question.base == "nf4" else 0
    # The largest weight's gradient before it joins the accumulator; in bf16 also its random bits and rounded copy.
    largest = max((_largest_trained(shape, spec) for spec in fulls), default=0)
    update = largest * (FP32_BYTES if question.dtype == "fp32" else work + 12)
    return backward + hidden + dequantised + update


def _largest_trained(shape: ModelShape, spec: FullSpec) -> int:
    if spec.support == "all":
        return shape.embedding_params
    return max(m.num_weights // m.count for m in select(shape, spec.targets, unembed=spec.unembed))
