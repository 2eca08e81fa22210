"""Products of bf16 have one rounding whatever the processor: widened or native, whole or in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowregret.adapters.routing import Routing
from lowregret.kernels import products
from lowregret.specs import AdapterSpec, Arithmetic
from tiny import bank_on, randomise_b, tiny_llama

HALF_ULP = 2.0**-8
"""Relative error of one rounding to bf16."""


@pytest.fixture(params=[True, False], ids=["multiplies", "widens"])
def multiplies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """As on a processor that multiplies bf16, and as on one that does not."""
    monkeypatch.setattr(products, "_cpu_multiplies_bf16", lambda: request.param)
    return request.param


def rounded_once(found: Tensor, exact: Tensor) -> None:
    """bf16 numbers that are nearest to sums in fp32: half a unit in the last place, and the accumulator's own error."""
    error = (found.double() - exact).abs()
    assert bool((error <= HALF_ULP * exact.abs() * 1.01 + 2e-5).all()), float(error.max())


@pytest.mark.parametrize("shape", [(5, 24, 40), (3, 200, 16), (4, 16, 200)])
def test_the_sum_is_rounded_once(
    multiplies: bool, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    rows, summed, columns = shape
    a, b = torch.randn(rows, summed).bfloat16(), torch.randn(summed, columns).bfloat16()
    assert products.widens(a) != multiplies
    exact = a.double() @ b.double()
    rounded_once(products.matmul(a, b), exact)
    monkeypatch.setattr(products, "WIDENED_WHOLE", 100)
    monkeypatch.setattr(products, "WIDENED_ELEMENTS", 700)  # several blocks, the last one smaller
    rounded_once(products.matmul(a, b), exact)


def test_products_of_fp32_are_torchs() -> None:
    a, b = torch.randn(4, 8), torch.randn(8, 3)
    assert torch.equal(products.matmul(a, b), a @ b)


@pytest.mark.usefixtures("multiplies")
def test_an_accumulator_of_fp32_takes_products_of_bf16() -> None:
    torch.manual_seed(0)
    a, b, total = torch.randn(6, 8).bfloat16(), torch.randn(8, 3).bfloat16(), torch.ones(6, 3)
    products.add_product(total, a, b)
    torch.testing.assert_close(total.double(), 1 + a.double() @ b.double(), rtol=HALF_ULP, atol=HALF_ULP)


@pytest.mark.usefixtures("multiplies")
def test_linear_gives_both_gradients() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 8).bfloat16().requires_grad_(), torch.randn(3, 8).bfloat16().requires_grad_()
    dy = torch.randn(5, 3).bfloat16()
    products.linear(x, weight).backward(dy)
    assert x.grad is not None
    assert weight.grad is not None
    rounded_once(x.grad, dy.double() @ weight.detach().double())
    rounded_once(weight.grad, dy.double().T @ x.detach().double())


@pytest.mark.usefixtures("multiplies")
@pytest.mark.parametrize("rank", [2, 16], ids=["folded", "separate"])
@pytest.mark.parametrize("arithmetic", ["accumulator", "add", "addmm"])
def test_a_layer_computes_in_the_arithmetic_that_its_slot_asks_for(rank: int, arithmetic: Arithmetic) -> None:
    _, bank = bank_on(
        tiny_llama(), {"s": AdapterSpec(rank=rank, alpha=4.0, arithmetic=arithmetic)}, dtype=torch.bfloat16
    )
    randomise_b(bank, "s", scale=0.02)
    layer = bank.sites["model.layers.0.mlp.up_proj"]
    torch.manual_seed(1)
    x = torch.randn(64, layer.in_features).bfloat16()
    with bank.route(Routing.from_lengths({"s": 64})):
        found = layer(x)
    down, up = layer.working.down[:rank].double(), layer.working.up[:, :rank].double()
    base, delta = x.double() @ layer.weight.double().T, (x.double() @ down.T).bfloat16().double() @ up.T
    expected = {
        "accumulator": base + delta,
        "add": base.bfloat16().double() + delta.bfloat16().double(),
        "addmm": base.bfloat16().double() + delta,
    }
    distance = {name: float((found.double() - value.bfloat16().double()).norm()) for name, value in expected.items()}
    assert min(distance, key=lambda name: distance[name]) == arithmetic, distance
    assert distance[arithmetic] < 0.5 * min(value for name, value in distance.items() if name != arithmetic)
