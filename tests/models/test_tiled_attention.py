"""bf16 attention of packed documents by our own kernel, in each way of multiplying that this processor has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowregret.kernels.native import Way, ways
from lowregret.models import tiled_attention
from lowregret.models.attention import Packing, packed_attention, packed_attention_reference
from tiny import needs_compiler

pytestmark = needs_compiler

SCALING = 0.2


def drawn(lengths: tuple[int, ...], channels: int, *, heads: int = 6, key_heads: int = 2) -> list[Tensor]:
    """q, k, v and the output's gradient, laid out token by token, as a layer has them."""
    generator = torch.Generator().manual_seed(sum(lengths))
    counts = (heads, key_heads, key_heads, heads)
    tokens = sum(lengths)
    return [torch.randn(tokens, n, channels, generator=generator).bfloat16().transpose(0, 1) for n in counts]


def leaves(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in tensors]


def error(found: Tensor, exact: Tensor) -> float:
    """Root mean square, relative."""
    with torch.no_grad():
        return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("way", list(Way))
@pytest.mark.parametrize(
    ("lengths", "window", "channels"),
    [((5, 33, 64, 1, 90), None, 64), ((32,), None, 32), ((100, 37), 8, 32), ((150,), 40, 96), ((1, 1, 1), None, 32)],
)
def test_outputs_and_gradients_equal_the_reference(
    lengths: tuple[int, ...], window: int | None, channels: int, way: Way
) -> None:
    if way not in ways():
        pytest.skip("this processor does not multiply that way")
    *inputs, do = drawn(lengths, channels)
    exact = leaves(inputs, torch.float64)
    expected = packed_attention_reference(exact[0], exact[1], exact[2], lengths, SCALING, window)
    gradients = torch.autograd.grad(expected, exact, do.double())
    q, k, v = own = leaves(inputs, torch.bfloat16)
    found = tiled_attention.tiled_attention(q, k, v, torch.tensor(lengths), SCALING, window, way)
    # Weights and results are rounded to 8 bits once each: a relative error of 2^-9 / sqrt(3) a rounding, at most 0.3 %.
    assert error(found, expected) < 3e-3
    for one, other in zip(torch.autograd.grad(found, own, do), gradients, strict=True):
        if float(other.norm()) > 1e-9:  # a document of one token: its weight is 1 whatever the scores are
            assert error(one, other) < 6e-3
        else:
            assert float(one.norm()) < 1e-2


@pytest.mark.parametrize("way", list(Way))
def test_no_token_sees_a_later_one_or_another_document(way: Way) -> None:
    if way not in ways():
        pytest.skip("this processor does not multiply that way")
    lengths = torch.tensor((40, 40))
    q, k, v, _ = drawn((40, 40), 32)
    before = tiled_attention.tiled_attention(q, k, v, lengths, SCALING, way=way)
    k[:, 33:40], v[:, 33:40] = 7.0, float("inf")
    after = tiled_attention.tiled_attention(q, k, v, lengths, SCALING, way=way)
    assert torch.equal(before[:, :32], after[:, :32])
    assert not torch.equal(before[:, 33:40], after[:, 33:40])
    assert torch.equal(before[:, 40:], after[:, 40:])


def test_it_serves_packed_rows_of_bf16_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, _ = drawn((20, 50), 32)
    monkeypatch.setattr(tiled_attention, "best_way", lambda: Way.PLAIN)  # as if it were the fastest
    assert tiled_attention.serves(q, v)
    assert not tiled_attention.serves(q.float(), v.float())
    assert not tiled_attention.serves(q[..., :20], v[..., :20])
    packing = Packing(lengths=(20, 50))
    served = packed_attention(q, k, v, packing, SCALING, None)
    assert torch.equal(served, tiled_attention.tiled_attention(q, k, v, packing.on_cpu, SCALING, None, Way.PLAIN))
    monkeypatch.setattr(tiled_attention, "best_way", lambda: None)
    assert not tiled_attention.serves(q, v)
    others = packed_attention(q, k, v, packing, SCALING, None)
    assert error(served, others.double()) < 6e-3
