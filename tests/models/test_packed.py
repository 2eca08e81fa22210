"""A model that decodes from packed weights is the model: any family, all slots, both formats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from tests.models.test_fast_body import CONFIGS, SPECS, build
from tests.tiny import bank_on, needs_compiler, randomise_b

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.routing import Routing
from lowregret.kernels import native, products
from lowregret.models import packed
from lowregret.models.causal_lm import CausalLM
from lowregret.models.kv_cache import DecodingStep, KVCache
from lowregret.models.native_step import NativeStep
from lowregret.models.packed import PackedSites
from lowregret.specs import AdapterSpec

pytestmark = needs_compiler

IN_ONE_CALL = ("llama", "llama-leftover-window", "mistral", "smollm3")

ROWS = Routing.from_lengths({"wide": 3, "narrow": 1, None: 2, "fresh": 2})
MANY_ROWS = Routing.from_lengths({"wide": 30, "narrow": 1, None: 7, "fresh": 2})
"""Enough for products by blocks of 32 rows, the last of them not full."""


@pytest.fixture(params=[True, False], ids=["multiplies", "widens"])
def processor(request: pytest.FixtureRequest) -> Iterator[None]:
    """As on a processor that multiplies bf16, and as on one that does not."""
    with patch.object(products, "_cpu_multiplies_bf16", lambda: request.param):
        yield


def logits_of(lm: CausalLM, cache: KVCache, routing: Routing = ROWS) -> torch.Tensor:
    """Of one token a row, behind whatever the cache holds."""
    num = routing.num_rows
    step = DecodingStep.of(cache, rows=range(num), held=[3] * num, device=torch.device("cpu"))
    with torch.no_grad(), lm.routed(routing):
        return lm.logits(lm.hidden_of(torch.arange(1, num + 1), step.positions, step))


def model_of(family: str, dtype: torch.dtype, *, unembed: bool = False) -> CausalLM:
    specs = SPECS | ({"wide": AdapterSpec(rank=8, unembed=True)} if unembed else {})
    lm, bank = bank_on(build(family), specs, dtype=dtype)
    for slot in ("wide", "narrow"):
        randomise_b(bank, slot, scale=0.2)
    return lm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_logits_of_a_step_are_those_of_the_model(family: str, dtype: torch.dtype, processor: None) -> None:
    lm = model_of(family, dtype, unembed=family == "llama")
    expected = logits_of(lm, KVCache(rows=8, length=32))
    with (
        patch.object(native, "product", wraps=native.product) as product,
        patch.object(NativeStep, "hidden", lambda *_: None),
        lm.decoding(),
    ):
        found = logits_of(lm, KVCache(rows=8, length=32))
    assert product.call_count == 2 * 7 + 1  # every matrix of two layers, and the unembedding
    error_R = (found.float() - expected.float()).norm(dim=1) / expected.float().norm(dim=1)
    assert float(error_R.max()) < (0.03 if dtype == torch.bfloat16 else 1e-5)


def test_the_logits_of_many_rows_are_those_of_the_model() -> None:
    lm = model_of("llama", torch.bfloat16)
    expected = logits_of(lm, KVCache(rows=40, length=32), MANY_ROWS)
    with lm.decoding(), patch.object(native, "step", wraps=native.step) as called:
        found = logits_of(lm, KVCache(rows=40, length=32), MANY_ROWS)
    assert called.call_count == 1
    error_R = (found.float() - expected.float()).norm(dim=1) / expected.float().norm(dim=1)
    assert float(error_R.max()) < 0.03


@pytest.mark.parametrize("routing", [ROWS, MANY_ROWS], ids=["few", "many"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_step_in_one_call_is_the_step_layer_by_layer(family: str, dtype: torch.dtype, routing: Routing) -> None:
    """Several tokens a row, so that the last ones attend to what the step itself wrote, and a window cuts off some."""
    lm, num = model_of(family, dtype), routing.num_rows
    caches = [KVCache(rows=num, length=32) for _ in range(2)]
    layers = lm._fast._layers if lm._fast is not None else []  # pyright: ignore[reportPrivateUsage]
    in_one = bool(layers) and all(layer.is_plain for layer in layers)
    with lm.decoding(), torch.no_grad(), lm.routed(routing):
        for held in range(7):
            order = [(row + held) % num for row in range(num)]  # cache rows are not those of the batch
            found = []
            for cache in caches:
                step = DecodingStep.of(cache, rows=order, held=[held] * num, device=torch.device("cpu"))
                layered = patch.object(NativeStep, "hidden", lambda *_: None) if cache is caches[1] else nullcontext()
                with patch.object(native, "step", wraps=native.step) as called, layered:
                    found.append(lm.hidden_of(torch.arange(1, num + 1), step.positions, step))
                assert called.call_count == (1 if cache is caches[0] and in_one else 0)
            torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert family not in IN_ONE_CALL or in_one


def test_a_slot_acts_in_full_in_bf16(processor: None) -> None:
    """The adapter's part is summed with the base's in fp32: small parts are not lost to the base's rounding."""
    lm = model_of("llama", torch.bfloat16)
    bank = lm.trainable
    assert isinstance(bank, AdapterBank)
    site = bank.sites["model.layers.0.self_attn.q_proj"]
    x = torch.randn(4096, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    randomise_b(bank, "wide", scale=2e-4)
    any_number = patch.multiple(packed, MOST_ROWS=4096, MOST_ROWS_BF16=4096)
    with lm.routed(Routing.from_lengths({"wide": 4096})), any_number:
        found = PackedSites([site]).product(site, x)
    assert found is not None
    weights = bank.weights["wide"]
    down, up = weights.a_of[site.name].double(), weights.b_of[site.name].double() * weights.spec.scaling
    part = x.double() @ down.T @ up.T
    base = x.double() @ site.weight.detach().double().T
    acted = float(((found.double() - base) * part).sum() / part.square().sum())
    swallowed = float((((base.bfloat16() + part.bfloat16()).double() - base) * part).sum() / part.square().sum())
    assert abs(acted - 1) < 0.1
    assert abs(acted - 1) < abs(swallowed - 1)


def test_what_rounds_in_between_is_not_packed() -> None:
    lm, _ = bank_on(build("llama"), {"s": AdapterSpec(rank=2, arithmetic="add")}, dtype=torch.bfloat16)
    with patch.object(native, "pack", wraps=native.pack) as pack, lm.decoding():
        assert not pack.called


def test_many_rows_go_by_the_models_own_products() -> None:
    lm = model_of("llama", torch.float32)
    with lm.decoding(), patch.object(packed, "MOST_ROWS", 4), patch.object(native, "product") as product:
        logits_of(lm, KVCache(rows=8, length=32))
    assert not product.called


def test_outside_of_decoding_nothing_is_packed() -> None:
    lm = model_of("llama", torch.float32)
    with lm.decoding():
        pass
    with patch.object(native, "product") as product:
        logits_of(lm, KVCache(rows=8, length=32))
    assert not product.called
