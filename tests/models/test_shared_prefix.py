"""A prefix that several branches share gives what each of them gives alone: outputs, gradients, whole models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.test_fast_body import CONFIGS, build
from tests.tiny import VOCABULARY, bank_on, needs_compiler, packed, randomise_b
from torch import Tensor

from lowregret.batches import TokenizedExample
from lowregret.models import shared_prefix
from lowregret.models.attention import Head, packed_attention_reference
from lowregret.models.causal_lm import CausalLM
from lowregret.models.shared_prefix import SharedPrefixes
from lowregret.specs import AdapterSpec
from lowregret.training.step import accumulate_gradients, nll_at

SHARED = SharedPrefixes(lengths=(3, 12, 4, 9), branches={1: (2, 1, 4), 3: (3, 3)})
"""Document, prefix of 5 with three branches, document, prefix of 3 with two."""
ALONE = (
    (range(3),),
    (range(3, 8), range(8, 10)),
    (range(3, 8), range(10, 11)),
    (range(3, 8), range(11, 15)),
    (range(15, 19),),
    (range(19, 22), range(22, 25)),
    (range(19, 22), range(25, 28)),
)
TOKENS = 28


def drawn(dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and the output's gradient, laid out token by token."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(TOKENS, n, 32, generator=generator).transpose(0, 1) for n in (4, 2, 2, 4)]
    return [tensor.to(dtype) for tensor in tensors]


def one_by_one(q: Tensor, k: Tensor, v: Tensor, head: Head) -> Tensor:
    """Each document and branch by itself, its own tokens written where they belong."""
    out = torch.zeros_like(q)
    for parts in ALONE:
        index = torch.tensor([token for part in parts for token in part])
        own = packed_attention_reference(
            q[:, index], k[:, index], v[:, index], [len(index)], head.scaling, head.window, head.softcap
        )
        out = out.index_copy(1, index, own)
    return out


@pytest.mark.parametrize("pieces", ["compiled", "torch"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", [Head(layer=0, scaling=0.2), Head(layer=0, scaling=0.2, window=4, softcap=5.0)])
def test_branches_equal_documents_alone(
    head: Head, dtype: torch.dtype, pieces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pieces == "torch":
        monkeypatch.setattr(shared_prefix.native, "serves", lambda _: False)
    *inputs, do = drawn(dtype)
    exact = [x.double().requires_grad_() for x in inputs]
    expected = one_by_one(exact[0], exact[1], exact[2], head)
    gradients = torch.autograd.grad(expected, exact, do.double())
    q, k, v = own = [x.detach().clone().requires_grad_() for x in inputs]
    found = SHARED.attend(q, k, v, head)
    bound = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 8e-3}[dtype]
    pairs = zip((found, *torch.autograd.grad(found, own, do)), (expected, *gradients), strict=True)
    for one, other in pairs:
        assert one.dtype == dtype
        with torch.no_grad():
            assert float((one.double() - other).norm() / other.norm()) < bound


def test_no_branch_sees_another() -> None:
    q, k, v, _ = drawn(torch.float32)
    head = Head(layer=0, scaling=0.2)
    before = SHARED.attend(q, k, v, head)
    k[:, 10], v[:, 10] = 7.0, float("inf")  # the second branch
    after = SHARED.attend(q, k, v, head)
    others = [token for token in range(TOKENS) if token != 10]
    assert torch.equal(before[:, others], after[:, others])
    assert not torch.equal(before[:, 10], after[:, 10])


@pytest.mark.parametrize("pieces", ["compiled", "torch"])
def test_what_branches_tell_their_prefix_is_rounded_once(pieces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 a thousand contributions of 1/256 to something of size 1 would each be dropped."""
    if pieces == "torch":
        monkeypatch.setattr(shared_prefix.native, "serves", lambda _: False)
    number = 1000
    places = SharedPrefixes(lengths=(1 + number,), branches={0: (1,) * number}).places_on(torch.device("cpu"))
    x = torch.zeros(1, 1 + number, 32, dtype=torch.bfloat16, requires_grad=True)
    unfolded = shared_prefix._Unfold.apply(x, places)
    assert isinstance(unfolded, Tensor)
    gradient = torch.full_like(unfolded, 2.0**-8)
    gradient[0, 0] = 1.0
    (found,) = torch.autograd.grad(unfolded, x, gradient)
    assert torch.equal(found[0, 0], torch.full((32,), 1 + (number - 1) / 256).bfloat16())
    assert torch.equal(found[0, 1:], torch.full((number, 32), 2.0**-8).bfloat16())


def test_a_gradient_without_strides_is_summed_too() -> None:
    x = torch.randn(2, TOKENS, 32, requires_grad=True)
    unfolded = shared_prefix._Unfold.apply(x, SHARED.places_on(x.device))
    assert isinstance(unfolded, Tensor)
    unfolded.sum().backward()
    assert x.grad is not None
    copies = torch.tensor([1] * 3 + [3] * 5 + [1] * 7 + [1] * 4 + [2] * 3 + [1] * 6)
    assert torch.equal(x.grad, copies[None, :, None].expand(2, TOKENS, 32).float())


SPECS = {"wide": AdapterSpec(rank=8), "narrow": AdapterSpec(rank=2, targets=("mlp", "q_proj"))}
PROMPTS = {"wide": (7, [5, 1, 9]), "narrow": (4, [2, 6])}
"""Of each slot the length of a prompt, and of its completions."""


def trees() -> dict[str, tuple[np.ndarray, list[np.ndarray]]]:
    rng = np.random.default_rng(0)
    return {
        slot: (rng.integers(1, VOCABULARY, prompt), [rng.integers(1, VOCABULARY, n) for n in completions])
        for slot, (prompt, completions) in PROMPTS.items()
    }


def gradients_of(family: str, *, shared: bool, fast: bool, recompute: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """nll of each completion token with the slots and with the base, and all gradients in a row."""
    lm, bank = bank_on(build(family), SPECS)
    lm = CausalLM(lm.model, trainable=bank, fast=fast)
    lm.use_activation_checkpointing(recompute)
    for slot in SPECS:
        randomise_b(bank, slot)
    bank.zero_grad()
    by_slot: dict[str, list[TokenizedExample]] = {slot: [] for slot in SPECS}
    positions: list[int] = []
    targets: list[int] = []
    at = 0
    for slot, (prompt, completions) in trees().items():
        inputs = [said[:-1] for said in completions]
        groups = [inputs] if shared else [[own] for own in inputs]
        for group in groups:
            tokens = np.concatenate([prompt, *group]).astype(np.int32)
            branches = tuple(len(own) for own in group if len(own)) if shared else ()
            by_slot[slot].append(TokenizedExample(tokens=tokens, completion=tokens < 0, branches=branches))
            start = at + len(prompt)
            for own in group:
                positions += [at + len(prompt) - 1, *range(start, start + len(own))]
                start += len(own)
            at += len(tokens)
        targets += [int(token) for said in completions for token in said]
    batch = packed(by_slot)
    assert bool(batch.branches) == shared
    rows, wanted = torch.tensor(positions), torch.tensor(targets)
    weights = torch.linspace(-1.0, 1.0, len(targets))
    losses = accumulate_gradients(lm, batch, rows, wanted, lambda part, _: weights[part])
    again = nll_at(lm, batch, rows, wanted)
    gradients = torch.cat([block.grad for slot in SPECS for block in bank.blocks(slot)])
    return losses, again, gradients


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_gets_the_losses_and_gradients_of_documents_alone(family: str) -> None:
    losses, _, expected = gradients_of(family, shared=False, fast=False)
    assert float(expected.norm()) > 0.1
    for fast, recompute in ((True, False), (True, True), (False, False)):
        found, again, gradients = gradients_of(family, shared=True, fast=fast, recompute=recompute)
        torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again, losses, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradients, expected, rtol=2e-4, atol=3e-6)


@needs_compiler
def test_sums_of_rows_are_those_of_torch() -> None:
    x = torch.randn(7, 40)
    places, offsets = torch.tensor([3, 0, 6, 2, 2]), torch.tensor([0, 1, 1, 4, 5])
    found = shared_prefix.native.sum_rows(x[:, :36], places, offsets)
    own = x[:, :36]
    torch.testing.assert_close(found, torch.stack([own[3], torch.zeros(36), own[0] + own[6] + own[2], own[2]]))
