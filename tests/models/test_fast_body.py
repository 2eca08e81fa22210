"""The fast path gives the numbers of transformers' own modules: losses, gradients, generation's cache, any family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from lowregret.adapters.routing import Routing
from lowregret.batches import PackedBatch
from lowregret.models import fused
from lowregret.models.causal_lm import CausalLM
from lowregret.models.fast_body import FAMILIES, FastBody
from lowregret.models.load import prepare_module, with_full
from lowregret.specs import AdapterSpec, FullSpec
from lowregret.training.step import batch_nll, forward_backward
from tiny import VOCABULARY, bank_on, examples, packed, randomise_b

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
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**SIZES),
    "llama-biases": transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=4),
    "qwen2": transformers.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=4, layer_types=["full_attention", "sliding_attention"]
    ),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=16),
    "smollm3": transformers.SmolLM3Config(**SIZES, no_rope_layers=[1, 0]),
}
SPECS = {
    "wide": AdapterSpec(rank=8),
    "narrow": AdapterSpec(rank=2, targets=("mlp", "q_proj")),
    "fresh": AdapterSpec(rank=1),
}
DOCUMENTS = examples(4, seed=5, longest=12)


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family]))
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)  # so that none of them acts as nothing
    return prepare_module(model)


def batch_of_slots() -> PackedBatch:
    return packed({"wide": DOCUMENTS, "narrow": DOCUMENTS[:2], "fresh": DOCUMENTS[1:]})


def lora(family: str, dtype: torch.dtype, *, fast: bool, recompute: bool = False) -> tuple[dict[str, float], Tensor]:
    """Losses, and all gradients in a row."""
    lm, bank = bank_on(build(family), SPECS, dtype=dtype)
    lm = CausalLM(lm.model, trainable=bank, fast=fast)
    lm.use_activation_checkpointing(recompute)
    for slot in ("wide", "narrow"):
        randomise_b(bank, slot)
    bank.zero_grad()
    losses = forward_backward(lm, batch_of_slots(), dict.fromkeys(SPECS, 10.0))
    return losses, torch.cat([block.grad for slot in SPECS for block in bank.blocks(slot)])


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_adapters_get_the_losses_and_gradients_of_the_modules(family: str, recompute: bool) -> None:
    losses, gradients = lora(family, torch.float32, fast=True, recompute=recompute)
    expected_losses, expected = lora(family, torch.float32, fast=False)
    assert losses == pytest.approx(expected_losses, abs=2e-6)
    torch.testing.assert_close(gradients, expected, rtol=2e-4, atol=2e-6)
    assert float(expected.norm()) > 0.1


@pytest.mark.parametrize("family", CONFIGS)
def test_adapters_in_bf16_stay_as_close_to_fp32_as_the_modules(family: str) -> None:
    _, exact = lora(family, torch.float32, fast=False)
    _, fast = lora(family, torch.bfloat16, fast=True)
    _, usual = lora(family, torch.bfloat16, fast=False)
    assert cosine(fast, exact) > 0.998
    assert 1 - cosine(fast, exact) < 1.5 * (1 - cosine(usual, exact))


@pytest.mark.parametrize("support", ["all", "matched"])
@pytest.mark.parametrize("family", CONFIGS)
def test_full_weights_get_the_losses_and_gradients_of_the_modules(family: str, support: Any) -> None:
    found: dict[bool, tuple[float, dict[str, Tensor]]] = {}
    for fast in (True, False):
        lm, full = with_full(build(family), FullSpec(support=support))
        lm = CausalLM(lm.model, trainable=full, fast=fast)
        losses = forward_backward(lm, packed({"full": DOCUMENTS}), {"full": 10.0})
        found[fast] = losses["full"], {block.name: block.grad for block in full.blocks("full")}
    assert found[True][0] == pytest.approx(found[False][0], abs=2e-6)
    assert any("norm" in name for name in found[True][1]) == (support == "all")
    for name, expected in found[False][1].items():
        assert float(expected.abs().max()) > 1e-5, name
        torch.testing.assert_close(found[True][1][name], expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_forward_that_trains_nothing_gives_the_same_nll(family: str) -> None:
    lm, bank = bank_on(build(family), SPECS)
    randomise_b(bank, "wide")
    batch = batch_of_slots()
    usual = CausalLM(lm.model, trainable=bank, fast=False)
    torch.testing.assert_close(batch_nll(lm, batch), batch_nll(usual, batch), rtol=1e-5, atol=1e-5)
    base = Routing.from_lengths({None: batch.tokens.numel()})
    torch.testing.assert_close(batch_nll(lm, batch, base), batch_nll(usual, batch, base), rtol=1e-5, atol=1e-5)


def test_a_fresh_adapter_is_exactly_the_base() -> None:
    lm, _ = bank_on(build("llama"), SPECS, dtype=torch.bfloat16)
    batch = batch_of_slots()
    assert torch.equal(batch_nll(lm, batch), batch_nll(lm, batch, Routing.from_lengths({None: batch.tokens.numel()})))


def test_only_known_families_take_the_fast_path() -> None:
    for family in CONFIGS:
        assert CONFIGS[family].model_type in FAMILIES
        assert FastBody.fits(build(family).get_submodule("model"))
    others = [
        transformers.GemmaConfig(**SIZES, head_dim=8),
        transformers.GraniteConfig(**SIZES),
        transformers.Olmo2Config(**SIZES),
        transformers.LlamaConfig(**SIZES, hidden_act="gelu"),
    ]
    for config in others:
        model = transformers.AutoModelForCausalLM.from_config(config)
        assert not FastBody.fits(model.get_submodule("model"))


def gradients_of(call: Callable[..., Tensor], inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    leaves = [value.clone().requires_grad_() for value in inputs]
    return list(torch.autograd.grad(call(*leaves), leaves, dy))


def test_norm_equals_its_formula() -> None:
    torch.manual_seed(1)
    h, weight, dn = torch.randn(5, 3, 8).double(), torch.randn(8).double(), torch.randn(5, 3, 8).double()
    inverse, n, grad_weight = fused.rms_inverse(h, 1e-5), torch.empty_like(h), torch.zeros_like(weight)
    fused.rms_scale(h, inverse, weight, n)
    dh = fused.rms_norm_backward(dn.clone(), h, weight, inverse, grad_weight)
    torch.testing.assert_close(n, fused.rms_norm_reference(h, weight, 1e-5))
    expected = gradients_of(lambda a, b: fused.rms_norm_reference(a, b, 1e-5), [h, weight], dn)
    torch.testing.assert_close([dh, grad_weight], expected)


def test_rotation_equals_its_formula_and_turns_back() -> None:
    torch.manual_seed(1)
    x, angles = torch.randn(5, 3, 8).double(), torch.randn(5, 4).double()
    cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
    turned, back, dy = torch.empty_like(x), torch.empty_like(x), torch.randn_like(x)
    fused.rotate(x, cos, sin, turned)
    torch.testing.assert_close(turned, fused.rotate_reference(x, cos, sin))
    fused.rotate(dy, cos, sin, back, back=True)
    torch.testing.assert_close([back], gradients_of(lambda a: fused.rotate_reference(a, cos, sin), [x], dy))


def test_swiglu_equals_its_formula() -> None:
    torch.manual_seed(1)
    gate, up, dm = torch.randn(5, 8).double(), torch.randn(5, 8).double(), torch.randn(5, 8).double()
    m, dgate, dup = torch.empty_like(gate), torch.empty_like(gate), torch.empty_like(gate)
    activated = fused.swiglu(gate, up, m)
    torch.testing.assert_close(m, fused.swiglu_reference(gate, up))
    fused.swiglu_backward(dm.clone(), gate, up, activated, dgate, dup)
    torch.testing.assert_close([dgate, dup], gradients_of(fused.swiglu_reference, [gate, up], dm))
