"""Short documents are attended densely, with the numbers of the reference: outputs, gradients, and no look ahead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowregret.models import dense_attention
from lowregret.models.attention import Packing, packed_attention, packed_attention_reference
from tiny import needs_compiler

pytestmark = needs_compiler


def drawn(num_tokens: int, *, heads: int = 6, key_heads: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(count, num_tokens, 8) for count in (heads, key_heads, key_heads, heads)]


@pytest.mark.parametrize("lengths", [(16, 16, 16), (5, 16, 5, 25, 32), (32,), (1, 1)])
def test_short_documents_equal_the_reference(lengths: tuple[int, ...]) -> None:
    q, k, v, do = drawn(sum(lengths))
    assert dense_attention.serves(q[None, :, : max(lengths)], v[None])
    leaves = q.clone().requires_grad_(), k.clone().requires_grad_(), v.clone().requires_grad_()
    exact = q.double().requires_grad_(), k.double().requires_grad_(), v.double().requires_grad_()
    found = packed_attention(*leaves, Packing(lengths=lengths), 0.3)
    expected = packed_attention_reference(*exact, lengths, 0.3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(found, leaves, do)
    for one, other in zip(gradients, torch.autograd.grad(expected, exact, do.double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-5)


def test_no_token_sees_a_later_one_or_another_document() -> None:
    q, k, v, _ = drawn(32)
    packing = Packing(lengths=(16, 16))
    before = packed_attention(q, k, v, packing, 0.3)
    k[:, 10:16], v[:, 10:16] = 7.0, 7.0
    after = packed_attention(q, k, v, packing, 0.3)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10:16], after[:, 10:16])
    assert torch.equal(before[:, 16:], after[:, 16:])
