"""Loss and gradients equal transformers + peft on the same batch, fp32, for every family; full fine-tuning too."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from lowregret.adapters.routing import Routing
from lowregret.batches import TokenizedExample
from lowregret.models.load import prepare_module, with_full
from lowregret.specs import AdapterSpec, FullSpec
from lowregret.training.step import forward_backward
from tiny import VOCABULARY, bank_on, examples, packed, randomise_b, tiny_llama

# peft 0.21 asks transformers 5.23 by a name that it has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
}
GEMMA = {**SIZES, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
FAMILIES: dict[str, transformers.PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**SIZES),
    "llama-tied": transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral-window": transformers.MistralConfig(**SIZES, sliding_window=4),
    "qwen2": transformers.Qwen2Config(**SIZES),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=8),
    "gemma": transformers.GemmaConfig(**SIZES, head_dim=8),
    "gemma2": transformers.Gemma2Config(**GEMMA),
    "gemma3": transformers.Gemma3TextConfig(**GEMMA),
    "phi": transformers.PhiConfig(**SIZES),
    "phi3": transformers.Phi3Config(**SIZES),
    "olmo": transformers.OlmoConfig(**SIZES),
    "olmo2": transformers.Olmo2Config(**SIZES),
    "smollm3": transformers.SmolLM3Config(**SIZES),
    "granite": transformers.GraniteConfig(**SIZES, logits_scaling=3.0),
}


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    config = copy.deepcopy(FAMILIES[family])  # a model keeps its config and changes its attention
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def padded_loss(model: Any, documents: list[TokenizedExample]) -> torch.Tensor:
    """The usual way: right-padded rows, labels -100 on the prompt, the mean over completion tokens."""
    longest = max(len(d.tokens) for d in documents)
    tokens = torch.zeros(len(documents), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
    for row, document in enumerate(documents):
        length = len(document.tokens)
        tokens[row, :length] = torch.from_numpy(document.tokens).long()
        mask[row, :length] = 1
        labels[row, :length][torch.from_numpy(document.completion)] = tokens[row, :length][
            torch.from_numpy(document.completion)
        ]
    return model(input_ids=tokens, attention_mask=mask, labels=labels).loss


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_loss_and_gradients_equal_peft(family: str) -> None:
    documents = examples(3, seed=5, longest=10)
    lm, bank = bank_on(prepare_module(build(family)), {"s": AdapterSpec(rank=4, alpha=8.0)})
    randomise_b(bank, "s")
    weights = bank.weights["s"]
    leaves = sorted({site.rsplit(".", 1)[-1] for site in weights.a_of})
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=leaves, lora_dropout=0.0)
    twin: Any = peft.get_peft_model(build(family), config)
    twin_a = {
        n.split(".lora_A")[0].removeprefix("base_model.model."): p for n, p in twin.named_parameters() if "lora_A" in n
    }
    twin_b = {
        n.split(".lora_B")[0].removeprefix("base_model.model."): p for n, p in twin.named_parameters() if "lora_B" in n
    }
    assert set(twin_a) == set(weights.a_of)
    with torch.no_grad():
        for site in twin_a:
            twin_a[site].copy_(weights.a_of[site])
            twin_b[site].copy_(weights.b_of[site])
    expected = padded_loss(twin, documents)
    expected.backward()
    batch = packed({"s": documents})
    bank.zero_grad()
    losses = forward_backward(lm, batch, {"s": float(batch.weights.sum())})
    assert losses["s"] == pytest.approx(expected.item(), abs=2e-5)
    for site in twin_a:
        grad_a, grad_b = bank.sites[site].gradients["s"]
        torch.testing.assert_close(grad_a, twin_a[site].grad, rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(grad_b, twin_b[site].grad, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen3", "gemma2"])
def test_full_fine_tuning_loss_and_gradients_equal_transformers(family: str) -> None:
    documents = examples(3, seed=6, longest=10)
    lm, full = with_full(prepare_module(build(family)), FullSpec())
    twin = build(family)
    expected = padded_loss(twin, documents)
    expected.backward()
    batch = packed({"full": documents})
    losses = forward_backward(lm, batch, {"full": float(batch.weights.sum())})
    assert losses["full"] == pytest.approx(expected.item(), abs=2e-5)
    gradients = {block.name: block.grad for block in full.blocks("full")}
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name], parameter.grad.flatten(), rtol=1e-3, atol=2e-5)


def test_activation_checkpointing_changes_no_gradient() -> None:
    batch = packed({"s": examples(4)})
    found = []
    for on in (False, True):
        lm, bank = bank_on(tiny_llama(), {"s": AdapterSpec(rank=4)})
        randomise_b(bank, "s")
        lm.use_activation_checkpointing(on)
        loss = forward_backward(lm, batch, {"s": float(batch.weights.sum())})["s"]
        found.append((loss, *(block.grad for block in bank.blocks("s"))))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(one, other) for one, other in zip(found[0][1:], found[1][1:], strict=True))


def test_packed_rows_equal_rows_alone() -> None:
    """No attention crosses a document: each document's logits are those of the document alone."""
    documents = examples(4, seed=8)
    lm, bank = bank_on(tiny_llama(), {"s": AdapterSpec(rank=4)})
    randomise_b(bank, "s")
    batch = packed({"s": documents})
    with torch.no_grad(), lm.routed(Routing.from_lengths(batch.slot_lengths)):
        together = lm.logits(lm.hidden(batch))
    alone = []
    for document in documents:
        single = packed({"s": [document]})
        with torch.no_grad(), lm.routed(Routing.from_lengths(single.slot_lengths)):
            alone.append(lm.logits(lm.hidden(single)))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
