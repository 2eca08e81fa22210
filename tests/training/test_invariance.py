"""C1 in the engine: two directions of alpha, init and the two learning rates leave the trained product as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lowregret.specs import AdapterSpec, OptimSpec
from lowregret.training.step import train_step
from tiny import bank_on, examples, optimizers, packed, tiny_llama

LR, ALPHA = 2.0**-7, 32.0
USUAL = OptimSpec(lr=LR, eps=1e-8, weight_decay=0.01)


def trained(p: float, q: float, optim: OptimSpec, dtype: torch.dtype) -> list[torch.Tensor]:
    """(alpha / r) B A of every matrix after ten steps, fp64."""
    spec = AdapterSpec(rank=2, alpha=ALPHA / (p * q), init_scale=p)
    lm, bank = bank_on(tiny_llama(), {"r2": spec}, dtype=dtype)
    optimizer = optimizers(bank, {"r2": replace(optim, lr=p * LR, lr_b=q * LR)})
    for step in range(10):
        train_step(lm, [packed({"r2": examples(2, seed=step)})], optimizer, factor=1.0)
    weights = bank.weights["r2"]
    return [spec.scaling * weights.b_of[site].double() @ weights.a_of[site].double() for site in weights.a_of]


def largest_difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    largest = max(float(product.abs().max()) for product in one)
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) / largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("p", "q"), [(0.5, 4.0), (2.0, 0.5), (4.0, 2.0)])
def test_with_eps_zero_it_holds_bitwise(p: float, q: float, dtype: torch.dtype) -> None:
    exact = OptimSpec(lr=LR, eps=0.0)
    reference = trained(1.0, 1.0, exact, dtype)
    assert all(torch.isfinite(product).all() for product in reference)
    assert max(float(product.abs().max()) for product in reference) > 0
    assert largest_difference(reference, trained(p, q, exact, dtype)) == 0


@pytest.mark.parametrize(("p", "q"), [(0.5, 4.0), (2.0, 2.0)])
def test_usual_eps_and_decay_must_be_corrected(p: float, q: float) -> None:
    reference = trained(1.0, 1.0, USUAL, torch.float64)
    decays = {"weight_decay": USUAL.weight_decay / p, "weight_decay_b": USUAL.weight_decay / q}
    corrected = replace(USUAL, eps=USUAL.eps / p, eps_b=USUAL.eps / q, **decays)
    assert largest_difference(reference, trained(p, q, corrected, torch.float64)) <= 1e-12
    assert largest_difference(reference, trained(p, q, USUAL, torch.float64)) > 1e-6


def test_clipping_breaks_it() -> None:
    clipped = OptimSpec(lr=LR, eps=0.0, clip_norm=1e-3, betas=(0.5, 0.5))
    one, other = trained(1.0, 1.0, clipped, torch.float64), trained(4.0, 0.5, clipped, torch.float64)
    assert largest_difference(one, other) > 1e-6
