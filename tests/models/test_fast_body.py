"""The fast path gives the numbers of transformers' own modules: losses, gradients, generation's cache, any family."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor, nn

from lowregret.adapters.routing import Routing
from lowregret.batches import PackedBatch
from lowregret.kernels import native, one_kernel
from lowregret.models import fused
from lowregret.models.causal_lm import CausalLM
from lowregret.models.fast_body import FAMILIES, FastBody
from lowregret.models.load import prepare_module, with_full
from lowregret.objectives.nll import nll, nll_reference, nll_with_gradient
from lowregret.specs import AdapterSpec, FullSpec
from lowregret.training.step import batch_nll, forward_backward
from tiny import VOCABULARY, bank_on, examples, needs_compiler, packed, randomise_b

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
    "llama-leftover-window": cast(Any, transformers.LlamaConfig)(**SIZES, sliding_window=4),
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
        transformers.LlamaConfig(
            **SIZES,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
    ]
    for config in others:
        model = transformers.AutoModelForCausalLM.from_config(config)
        assert not FastBody.fits(model.get_submodule("model"))


def gradients_of(call: Callable[..., Tensor], inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    leaves = [value.clone().requires_grad_() for value in inputs]
    return list(torch.autograd.grad(call(*leaves), leaves, dy))


FORMATS = [torch.float64, torch.float32, torch.bfloat16]


ON_GPU = "as on a GPU"
WAYS = [
    *itertools.product(FORMATS, ("compiled", "torch")),
    pytest.param(torch.float32, ON_GPU, marks=[needs_compiler, pytest.mark.long]),
    pytest.param(torch.bfloat16, ON_GPU, marks=[needs_compiler, pytest.mark.long]),
]
each_way = pytest.mark.parametrize(("dtype", "pieces"), WAYS, indirect=["pieces"])


@pytest.fixture
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled pieces where there is a compiler, for fp32 and bf16; torch's operations; torch.compile's kernels,
    which on a GPU are the same operations for another backend."""
    if request.param != "compiled":
        monkeypatch.setattr(native, "serves", lambda _: False)
    if request.param == ON_GPU:
        monkeypatch.setattr(one_kernel, "serves", lambda _: True)
    return request.param


def close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype, pieces: str = "compiled") -> None:
    """Results in a format against fp64's; to half a unit in the last place of bf16, with room for sums in fp32. torch's
    operations round bf16 up to three times."""
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2**-8}[dtype]
    tolerance *= 3 if pieces == "torch" and dtype == torch.bfloat16 else 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Random tensors in a format, and the same numbers in fp64."""
    torch.manual_seed(1)
    made = [torch.randn(shape).to(dtype) for shape in shapes]
    return made, [value.double() for value in made]


def roomy(like: Tensor) -> Tensor:
    """A place for a result whose rows are further apart than they are wide."""
    return like.new_full((*like.shape[:-1], like.shape[-1] + 5), torch.nan)[..., : like.shape[-1]]


@each_way
def test_norm_equals_its_formula(dtype: torch.dtype, pieces: str) -> None:
    (h, weight, dn, add), (h64, weight64, dn64, add64) = drawn((7, 24), (24,), (7, 24), (7, 24), dtype=dtype)
    n, again, dh, grad_weight = roomy(h), roomy(h), roomy(h), torch.zeros(24, dtype=torch.float64)
    inverse = fused.rms_norm(h, weight, 1e-5, n)
    fused.rms_scale(h, inverse, weight, again)
    fused.rms_norm_backward(dn, h, weight, inverse, dh, add_TD=add, grad_weight_D=grad_weight)
    assert torch.equal(n, again)
    expected = gradients_of(lambda a, b: fused.rms_norm_reference(a, b, 1e-5), [h64, weight64], dn64)
    close([n, dh], [fused.rms_norm_reference(h64, weight64, 1e-5), expected[0] + add64], dtype, pieces)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5  # rows are summed in fp32 from fp32, whatever the format
    torch.testing.assert_close(grad_weight, expected[1], rtol=tolerance, atol=tolerance)
    fused.rms_norm_backward(dn, h, weight, inverse, add, add_TD=add)
    assert torch.equal(add, dh)  # in the place of what it is added to
    fused.rms_norm_backward(dn, h, weight, inverse, dh)
    close([dh], [expected[0]], dtype, pieces)


@each_way
def test_rotation_equals_its_formula_and_turns_back(dtype: torch.dtype, pieces: str) -> None:
    (x, angles, dy), _ = drawn((5, 3, 8), (5, 4), (3, 5, 8), dtype=dtype)
    dy = dy.transpose(0, 1)
    cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
    turned, back = roomy(x), roomy(x)
    fused.rotate(x, cos, sin, turned)
    fused.rotate(dy, cos, sin, back, back=True)
    wide = cos.double(), sin.double()
    expected = gradients_of(lambda a: fused.rotate_reference(a, *wide), [x.double()], dy.double())
    close([turned, back], [fused.rotate_reference(x.double(), *wide), *expected], dtype, pieces)


@pytest.mark.parametrize(
    ("dtype", "pieces"), [*WAYS[:-1], pytest.param(torch.bfloat16, ON_GPU, marks=needs_compiler)], indirect=["pieces"]
)
def test_swiglu_equals_its_formula(dtype: torch.dtype, pieces: str) -> None:
    (gate, up, dm), (gate64, up64, dm64) = drawn((5, 24), (5, 24), (5, 24), dtype=dtype)
    gate[0, :3] = gate64[0, :3] = torch.tensor([40.0, -40.0, 0.0])
    m, dgate, dup = roomy(gate), roomy(gate), roomy(gate)
    fused.swiglu(gate, up, m)
    fused.swiglu_backward(dm, gate, up, dgate, dup)
    expected = gradients_of(fused.swiglu_reference, [gate64, up64], dm64)
    close([m, dgate, dup], [fused.swiglu_reference(gate64, up64), *expected], dtype, pieces)


@each_way
def test_nll_equals_its_formula(dtype: torch.dtype, pieces: str) -> None:
    (logits, weights), (logits64, weights64) = drawn((9, 130), (9,), dtype=dtype)
    logits[0] = logits64[0] = torch.linspace(-300.0, 300.0, 130).to(dtype)
    weights = weights.to(torch.promote_types(dtype, torch.float32))
    targets = torch.arange(9) * 14
    expected_losses, expected = nll_reference(logits64, targets, weights64)
    torch.testing.assert_close(nll(logits, targets).double(), expected_losses, rtol=1e-5, atol=1e-5)
    losses, gradient = nll_with_gradient(logits, targets, lambda losses: weights)
    torch.testing.assert_close(losses.double(), expected_losses, rtol=1e-5, atol=1e-5)
    close([gradient], [expected], dtype, pieces)


@needs_compiler
def test_two_threads_compute_what_one_does() -> None:
    """Pieces large enough to be split among threads, row by row."""
    (x, ones, other), _ = drawn((64, 1024), (1024,), (64, 1024), dtype=torch.float32)
    found: list[list[Tensor]] = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out, second, turned = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        inverse = fused.rms_norm(x, ones, 1e-5, out)
        fused.swiglu_backward(other, x, out, second, turned)
        losses, gradient = nll_with_gradient(x.clone(), torch.arange(64), torch.ones_like)
        packed_product = torch.empty(64, 64)
        native.product(x, native.pack(other), packed_product)
        found.append([out, inverse, second, turned, losses, gradient, packed_product])
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_pieces_pass_a_nan_on_and_nowhere_else(dtype: torch.dtype) -> None:
    (x, ones, other), _ = drawn((4, 32), (32,), (4, 32), dtype=dtype)
    x[1, 7] = torch.nan
    out, second = torch.empty_like(x), torch.empty_like(x)
    inverse = fused.rms_norm(x, ones, 1e-5, out)
    assert out.isnan().any(1).tolist() == [False, True, False, False]
    assert inverse.isnan()[:, 0].tolist() == [False, True, False, False]
    fused.swiglu(x, other, out)
    assert torch.equal(out.isnan(), x.isnan())
    fused.swiglu_backward(other, x, other, out, second)
    assert torch.equal(out.isnan(), x.isnan())
    losses, gradient = nll_with_gradient(x, torch.tensor([0, 1, 2, 3]), torch.ones_like)
    assert losses.isnan().tolist() == [False, True, False, False]
    assert gradient.isnan().any(1).tolist() == [False, True, False, False]


def test_the_embedding_s_gradient_is_summed_in_fp32() -> None:
    """A token that stands a thousand times: in bf16 a sum of ones stays at 256."""
    lm, full = with_full(build("llama").bfloat16(), FullSpec())
    lm._embedded(torch.full((1000,), 5)).sum().backward()  # pyright: ignore[reportPrivateUsage]
    (gradient,) = (block.grad.view(VOCABULARY, -1) for block in full.blocks("full") if "embed_tokens" in block.name)
    assert bool((gradient[5] == 1000.0).all())
    assert float(gradient.sum()) == 1000.0 * gradient.shape[1]
