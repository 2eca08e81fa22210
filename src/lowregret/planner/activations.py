"""What the forward saves for the backward, counted per token from what autograd keeps of transformers' layers.

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


def activation_bytes(
    shape: ModelShape, *, tokens: int, work: int, columns: Sequence[int], full: bool, norms: bool, checkpointing: bool
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
    """
    layers = [_layer_bytes(shape, layer, work, columns, full, norms) for layer in range(shape.num_layers)]
    final = shape.hidden_size * (FP32_BYTES + (work if norms else 0)) + 2 * FP32_BYTES
    if checkpointing:
        return tokens * (shape.num_layers * shape.hidden_size * work + max(layers, default=0) + final)
    return tokens * (sum(layers) + final)


def _layer_bytes(shape: ModelShape, layer: int, work: int, columns: Sequence[int], full: bool, norms: bool) -> int:
    """Norm inputs in fp32 (their outputs too where their weights train), attention, MLP, and inputs of what trains.

    The attention keeps queries, keys, values and its output; its probabilities are recomputed by the fused kernel.
    """
    in_norms = shape.norm_channels * FP32_BYTES * (2 if norms else 1)
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    elements = 2 * queries + 2 * keys
    # Log-sum-exp of each head, and the scale of each norm (a head's own too).
    statistics = FP32_BYTES * (2 * shape.num_heads + shape.num_kv_heads + 4)
    for kind in ("attention", "mlp", "expert"):
        block = [(m, columns[i]) for i, m in enumerate(shape.matrices) if m.kind == kind and layer in m.layers]
        if block:
            elements += _block_elements(block, full)
        if kind == "attention" and len(block) == 2:
            # Values of a fused projection are a view: queries and keys before their rotation stay with them.
            elements += queries + keys
    return in_norms + elements * work + statistics


def _block_elements(block: Sequence[tuple[MatrixShape, int]], full: bool) -> int:
    """Numbers that one token leaves behind in an attention or MLP block besides the attention's own.

    All matrices but the last share one input; an input is kept once, where a matrix that reads it trains.
    """
    *into, (last, last_columns) = block
    active = last.active_experts
    elements = sum(columns * matrix.active_experts for matrix, columns in block)
    if into and (full or any(columns for _, columns in into)):
        elements += into[0][0].d_in * active
    if full or last_columns:
        elements += last.d_in * active
    if last.kind != "attention":
        gated = sum(matrix.d_out for matrix, _ in into) > last.d_in
        elements += (GATED_BUFFERS if gated else PLAIN_BUFFERS) * last.d_in * active
    return elements
