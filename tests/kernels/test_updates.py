"""The compiled pieces of an optimizer's step equal torch's operations."""

from __future__ import annotations

import math

import pytest
import torch

from lowregret.adapters.full import stochastic_bf16_reference
from lowregret.adapters.parameters import ParameterBlock
from lowregret.kernels import native
from lowregret.kernels.products import accumulate_into
from lowregret.specs import OptimSpec
from lowregret.training.optimizer import AdamW
from tiny import needs_compiler

pytestmark = needs_compiler

NUMBER = 100_003  # more than one thread's piece, and no multiple of a vector


def numbers(seed: int) -> torch.Tensor:
    return torch.randn(NUMBER, generator=torch.Generator().manual_seed(seed))


def test_the_sum_of_squares_is_that_of_fp64_whatever_the_threads() -> None:
    x = numbers(0)
    found = native.squares(x)
    assert found == pytest.approx(float(x.double().square().sum()), rel=1e-13)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        assert native.squares(x) == found
    finally:
        torch.set_num_threads(threads)
    assert math.isnan(native.squares(torch.tensor([1.0, float("nan")])))


@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("clip_norm", [None, 5.0])
def test_adamw_equals_the_same_formula_by_torch(
    clip_norm: float | None, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = OptimSpec(lr=3e-3, betas=(0.8, 0.95), eps=eps, weight_decay=0.1, clip_norm=clip_norm)
    pairs = tuple(ParameterBlock(name="w", role="full", value=numbers(1), grad=numbers(0)) for _ in range(2))
    fused, plain = (AdamW(spec, (pair,)) for pair in pairs)
    for step in range(4):
        grad = numbers(10 + step)
        grad[:7] = 0.0  # with eps 0 these must stay where they are, but for the decay
        for block in pairs:
            block.grad.copy_(grad)
        update = fused.step(pairs[:1], 0.9)
        assert update.bounded
        with monkeypatch.context() as patched:
            patched.setattr(native, "updates", lambda *_: False)
            other = plain.step(pairs[1:], 0.9)
        assert other.norm == pytest.approx(update.norm, rel=1e-12)
        assert other.bounded
    torch.testing.assert_close(pairs[0].value, pairs[1].value, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(fused.moments["w"].first, plain.moments["w"].first, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(fused.moments["w"].second, plain.moments["w"].second, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -2e30])
@pytest.mark.parametrize("place", [0, NUMBER - 1])
def test_a_weight_that_grew_beyond_all_bounds_is_told(
    place: int, bad: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ParameterBlock(name="v", role="full", value=numbers(2), grad=numbers(3))
    block = ParameterBlock(name="w", role="full", value=numbers(1), grad=numbers(0))
    block.value[place] = bad
    if not compiled:
        monkeypatch.setattr(native, "updates", lambda *_: False)
    optimizer = AdamW(OptimSpec(lr=1e-3), (first, block))
    assert not optimizer.step((first, block), 1.0).bounded
    assert optimizer.step((first,), 1.0).bounded


def stochastic(value: torch.Tensor, seed: int) -> torch.Tensor:
    out = torch.empty_like(value, dtype=torch.bfloat16)
    native.stochastic_bf16(value, seed, out)
    return out


@pytest.mark.parametrize("seed", [0, 1, -(2**63), 2**63 - 1])
def test_stochastic_copies_have_the_bits_of_the_reference(seed: int) -> None:
    value = torch.cat([numbers(0), torch.tensor([float("inf"), -float("inf"), 0.0, -0.0, 1e-40])])
    expected = stochastic_bf16_reference(value, torch.tensor([seed]))
    assert torch.equal(stochastic(value, seed).view(torch.int16), expected.view(torch.int16))
    other = stochastic(value, seed ^ 1)
    assert 0.3 < float((other != expected).float().mean()) < 0.6  # other bits: a third at least is rounded otherwise
    assert bool(stochastic(torch.tensor([float("nan"), -float("nan")]), seed).isnan().all())


def test_bf16_is_added_to_an_accumulator_exactly() -> None:
    total, part = numbers(0), numbers(1).bfloat16()
    expected = total + part.float()
    accumulate_into(total, part)
    assert torch.equal(total, expected)
