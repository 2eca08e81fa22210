"""What the forward saves for the backward, counted per token: of the fast path's layers (`models/llama_layer.py`), and
for other families from what autograd keeps of transformers' layers.

`tests/planner/test_memory.py` holds the count against the tensors that a real forward saves.
"""

from __future__ import annotations

from collections.abc import Sequence

from lowregret.specs.shape import MatrixShape, ModelShape

FP32_BYTES = 4

GATED_BUFFERS = 3
"""Of a gated MLP: gate, its activation, and up; their product is the input of the last matrix."""
PLAIN_BUFFERS = 4
"""Of an MLP without a gate: the pieces of an approximate GELU."""

FAST_FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "smollm3"}
"""Families that take the fast path (`models/fast_body.py`)."""
DENSE_LONGEST = 32
"""On a CPU, documents up to this length keep their attention's weights (`models/dense_attention.py`)."""
TILED_CHANNELS = 32
"""Attention without copies takes heads whose channels are a multiple of this (`models/tiled_attention.py`)."""


def activation_bytes(
    shape: ModelShape,
    *,
    tokens: int,
    work: int,
    columns: Sequence[int],
    full: bool,
    norms: bool,
    checkpointing: bool,
    device: str,
    bf16_fast: bool = False,
) -> int:
    """Bytes that one micro-batch saves.

    Args:
        shape: of the base.
        tokens: of the micro-batch.
        work: bytes of a working-format number.
        columns: adapter columns of each matrix of the shape; 0 where it is not adapted.
        full: whether the weights themselves train, so that every input is kept.
        norms: whether the norms' weights train too, so that their outputs are kept.
        checkpointing: keep each layer's input, and everything of one layer while it is recomputed.
        device: `cpu` or another.
        bf16_fast: whether it multiplies bf16 in hardware.
    """
    of_attention = _attention_bytes(shape, work, device, bf16_fast)
    if shape.model_type in FAST_FAMILIES:
        layers = [_fast_layer_bytes(shape, layer, work, columns, of_attention) for layer in range(shape.num_layers)]
        inputs = shape.num_layers * shape.hidden_size * work
        last = shape.hidden_size * work + FP32_BYTES
        return tokens * (inputs + (max(layers, default=0) if checkpointing else sum(layers)) + last)
    layers = [
        _layer_bytes(shape, layer, work, columns, full, norms, device, of_attention)
        for layer in range(shape.num_layers)
    ]
    final = shape.hidden_size * (FP32_BYTES + (work if norms else 0)) + 2 * FP32_BYTES
    if checkpointing:
        return tokens * (shape.num_layers * shape.hidden_size * work + max(layers, default=0) + final)
    return tokens * (sum(layers) + final)


def _fast_layer_bytes(shape: ModelShape, layer: int, work: int, columns: Sequence[int], of_attention: int) -> int:
    """`llama_layer.Activations` besides the layer's input, and what the attention's kernel keeps of its own."""
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    own = [(m, columns[i]) for i, m in enumerate(shape.matrices) if layer in m.layers]
    inner = max((m.d_in for m, _ in own if m.kind == "mlp"), default=0)
    elements = shape.hidden_size + 2 * queries + 2 * keys + 2 * inner
    # Norms of heads (Qwen3) keep what they read.
    elements += max(0, shape.norm_channels - 2 * shape.hidden_size)
    statistics = FP32_BYTES * (2 + 2 * shape.num_heads + shape.num_kv_heads)
    return elements * work + of_attention + statistics + sum(count for _, count in own) * FP32_BYTES


def _attention_bytes(shape: ModelShape, work: int, device: str, bf16_fast: bool) -> int:
    """What attention keeps besides the layer's own: copies of queries, keys, values and output.

    On a CPU that does not multiply bf16 they are fp32, and short documents keep weights besides. One that does takes
    documents as they lie (`models/tiled_attention.py`) where heads have the channels for it: the fast path then holds
    no copies, other families those that autograd keeps. Where it copies, documents are filled up by an eighth at most.
    """
    elements = 2 * (shape.num_heads + shape.num_kv_heads) * shape.head_dim
    if device != "cpu":
        return elements * work
    if not bf16_fast or work == FP32_BYTES:
        return (elements + shape.num_heads * DENSE_LONGEST) * FP32_BYTES
    if shape.head_dim % TILED_CHANNELS:
        return (elements + elements // 8) * work
    return 0 if shape.model_type in FAST_FAMILIES else elements * work


def fast_workspace(shape: ModelShape) -> int:
    """Numbers a token that the backward of one layer holds in passing: the MLP's five, and the residual stream's."""
    inner = max((m.d_in for m in shape.matrices if m.kind == "mlp"), default=0)
    return 5 * inner + 4 * shape.hidden_size


def _layer_bytes(
    shape: ModelShape,
    layer: int,
    work: int,
    columns: Sequence[int],
    full: bool,
    norms: bool,
    device: str,
    of_attention: int,
) -> int:
    """Norm inputs in fp32 (their outputs too where their weights train), attention, MLP, and inputs of what trains."""
    in_norms = shape.norm_channels * FP32_BYTES * (2 if norms else 1)
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    elements = 0
    # Log-sum-exp of each head, and the scale of each norm (a head's own too).
    statistics = FP32_BYTES * (2 * shape.num_heads + shape.num_kv_heads + 4)
    for kind in ("attention", "mlp", "expert"):
        block = [(m, columns[i]) for i, m in enumerate(shape.matrices) if m.kind == kind and layer in m.layers]
        if block:
            elements += _block_elements(block, full)
            statistics += sum(count * m.active_experts for m, count in block) * (
                FP32_BYTES if device == "cpu" else work
            )
        if kind == "attention" and len(block) == 2:
            # Values of a fused projection are a view: queries and keys before their rotation stay with them.
            elements += queries + keys
    return in_norms + elements * work + of_attention + statistics


def _block_elements(block: Sequence[tuple[MatrixShape, int]], full: bool) -> int:
    """Numbers that one token leaves behind in an attention or MLP block besides the attention's own.

    All matrices but the last share one input; an input is kept once, where a matrix that reads it trains.
    """
    *into, (last, last_columns) = block
    active = last.active_experts
    elements = 0
    if into and (full or any(columns for _, columns in into)):
        elements += into[0][0].d_in * active
    if full or last_columns:
        elements += last.d_in * active
    if last.kind != "attention":
        gated = sum(matrix.d_out for matrix, _ in into) > last.d_in
        elements += (GATED_BUFFERS if gated else PLAIN_BUFFERS) * last.d_in * active
    return elements
