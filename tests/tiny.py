"""Tiny random models and packed batches that the tests build for themselves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from lowregret.adapters.bank import AdapterBank
from lowregret.batches import PackedBatch, TokenizedExample
from lowregret.data.packing import pack
from lowregret.models.causal_lm import CausalLM
from lowregret.models.load import cast_parameters, prepare_module, with_bank
from lowregret.specs import AdapterSpec, OptimSpec
from lowregret.training.optimizer import AdamW

VOCABULARY = 96

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or os.environ.get("LOWREGRET_KERNELS") == "torch",
    reason="no compiled pieces: torch's operations serve",
)


def tiny_llama(*, width: int = 32, layers: int = 2, seed: int = 0, tied: bool = False) -> nn.Module:
    """A Llama with grouped queries and a gated MLP, fp32, about 30k parameters."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=tied,
        pad_token_id=0,
        initializer_range=0.1,
    )
    return prepare_module(transformers.LlamaForCausalLM(config))


def examples(num: int, *, seed: int = 0, shortest: int = 4, longest: int = 12) -> list[TokenizedExample]:
    """Random documents; the first third of each is the prompt."""
    rng = np.random.default_rng(seed)
    made: list[TokenizedExample] = []
    for _ in range(num):
        length = int(rng.integers(shortest, longest + 1))
        tokens = rng.integers(1, VOCABULARY, length).astype(np.int32)
        made.append(TokenizedExample(tokens=tokens, completion=np.arange(length) >= max(1, length // 3)))
    return made


def packed(by_slot: Mapping[str, Sequence[TokenizedExample]]) -> PackedBatch:
    """All documents of all slots in one batch."""
    return pack([(slot, example) for slot, documents in by_slot.items() for example in documents])


def bank_on(
    model: nn.Module, specs: Mapping[str, AdapterSpec], *, dtype: torch.dtype = torch.float32
) -> tuple[CausalLM, AdapterBank]:
    """A bank with these slots on a model brought to `dtype`; masters fp64 where the model is fp64."""
    master = torch.float64 if dtype == torch.float64 else torch.float32
    moved = model.double() if dtype == torch.float64 else cast_parameters(model, dtype)
    lm, bank = with_bank(moved, master_dtype=master)
    for name, spec in specs.items():
        bank.join(name, spec)
    return lm, bank


def optimizers(bank: AdapterBank, specs: Mapping[str, OptimSpec]) -> dict[str, AdamW]:
    """An optimizer for each slot of the bank that has a spec."""
    return {slot: AdamW(spec, bank.blocks(slot)) for slot, spec in specs.items()}


def randomise_b(bank: AdapterBank, slot: str, *, scale: float = 0.05, seed: int = 7) -> None:
    """Give a slot's B random values, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    bank.weights[slot].b.copy_(torch.randn(bank.weights[slot].b.shape, generator=generator) * scale)
    bank.publish(slot)
