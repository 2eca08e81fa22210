"""Multiply-adds equal what torch counts on a real forward and backward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lowregret.planner.flops import Method, break_even_rank, flops, run_tokens
from lowregret.planner.recommend import assumed_shape
from lowregret.planner.shapes import read_shape
from lowregret.planner.targets import select
from lowregret.specs import DataFacts, MatrixShape

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
TOKENS = 8
RANK = 4


def counted(method: Method) -> int:
    """Multiply-adds of the matrix products of one forward and backward, by torch; scores of the attention left out."""
    config = transformers.LlamaConfig(**cast(Any, {**CONFIG, "attn_implementation": "eager"}))
    model = cast(Any, transformers.LlamaForCausalLM(config))
    if method == "lora":
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear"))
        model.enable_input_require_grads()
    with FlopCounterMode(display=False) as counter:
        tokens = torch.arange(TOKENS)[None]
        model(input_ids=tokens, labels=tokens).loss.backward()
    by_kernel = counter.get_flop_counts()["Global"]
    products = sum(count for kernel, count in by_kernel.items() if "bmm" not in str(kernel))
    return products // 2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's call, not ours
@pytest.mark.parametrize("method", ["lora", "full"])
def test_matrix_products_are_torch_s(method: Method, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **CONFIG}))
    shape = read_shape(tmp_path)
    adapted = select(shape, ("all",), unembed=False)
    cost = flops(shape, method=method, adapted=adapted, rank=RANK, mean_length=TOKENS)
    assert TOKENS * (cost.matrices + cost.unembed) == counted(method)


def test_a_square_matrix_breaks_even_at_a_sixth_of_its_side() -> None:
    shape = assumed_shape(768, 1)
    square = MatrixShape(name="o_proj", kind="attention", d_in=768, d_out=768, path="o", layers=(0,))
    alone = type(shape)(**{**shape.__dict__, "matrices": (square,)})
    assert break_even_rank(alone, [square]) == 128


@given(hidden=st.sampled_from([256, 512, 1024]), layers=st.integers(1, 8))
def test_lora_costs_as_much_as_full_at_the_break_even_rank(hidden: int, layers: int) -> None:
    shape = assumed_shape(hidden, layers)
    adapted = select(shape, ("all",), unembed=True)
    even = break_even_rank(shape, adapted)
    full = flops(shape, method="full", mean_length=100).per_token
    below = flops(shape, method="lora", adapted=adapted, rank=int(even), mean_length=100).per_token
    above = flops(shape, method="lora", adapted=adapted, rank=int(even) + 1, mean_length=100).per_token
    assert below <= full < above


def test_rank_256_at_width_4096_costs_79_percent() -> None:
    n = 4096
    matrix = MatrixShape(name="m", kind="mlp", d_in=n, d_out=n, path="m", layers=(0,))
    shape = type(assumed_shape(n, 1))(**{**assumed_shape(n, 1).__dict__, "matrices": (matrix,)})
    lora = flops(shape, method="lora", adapted=[matrix], rank=256, mean_length=1).matrices
    assert lora / flops(shape, method="full", mean_length=1).matrices == pytest.approx(2 / 3 + 2 * 256 / n)


def test_attention_sees_half_of_a_document_and_no_more_than_its_window() -> None:
    shape = assumed_shape(256, 2)
    windowed = type(shape)(**{**shape.__dict__, "attention_windows": (16, None)})
    channels = shape.num_heads * shape.head_dim
    assert flops(shape, method="full", mean_length=99).attention == 6 * channels * 2 * 50
    keys = (sum(range(1, 17)) + 16 * 83) / 99
    assert flops(windowed, method="full", mean_length=99).attention == pytest.approx(6 * channels * (keys + 50))


def test_only_completion_tokens_make_logits() -> None:
    facts = DataFacts(num_examples=10, num_tokens=100, num_completion_tokens=40, longest=20)
    cost = flops(assumed_shape(256, 2), method="full", mean_length=10)
    tokens, completion = run_tokens(facts, steps=4, batch_size=5)
    assert (tokens, completion) == (200, 80)
    assert cost.of_run(tokens, completion) == 200 * (cost.matrices + cost.attention) + 80 * cost.unembed
