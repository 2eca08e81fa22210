"""On a GPU, where there is one: its own paths give the numbers of the CPU's."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor

from lowregret.adapters import jagged
from lowregret.batches import PackedBatch
from lowregret.errors import ModelError
from lowregret.kernels import one_kernel
from lowregret.models import fused, varlen_attention
from lowregret.models.attention import packed_attention_reference
from lowregret.models.causal_lm import CausalLM
from lowregret.models.load import prepare_module
from lowregret.objectives.nll import nll_reference, nll_with_gradient
from lowregret.sampling import sampler, steps
from lowregret.sampling.sampler import Request, Sampler
from lowregret.specs import AdapterSpec, OptimSpec, SamplingSpec
from lowregret.training.step import train_step
from tiny import VOCABULARY, bank_on, examples, optimizers, packed, randomise_b

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SLOTS = {
    "a": AdapterSpec(rank=4),
    "b": AdapterSpec(rank=8, targets=("mlp",), init_seed=1),
    "c": AdapterSpec(rank=16, init_seed=2),
}


def bank(dtype: torch.dtype, device: str) -> tuple[CausalLM, Any]:
    """Three slots with B on a Llama of two layers, heads of 32 channels."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        pad_token_id=0,
    )
    module = prepare_module(transformers.LlamaForCausalLM(config)).to(device)
    lm, made = bank_on(module, SLOTS, dtype=dtype)
    for seed, slot in enumerate(SLOTS):
        randomise_b(made, slot, seed=seed)
    return lm, made


def batch() -> PackedBatch:
    return packed({slot: examples(4, seed=at, longest=40) for at, slot in enumerate(SLOTS)})


@pytest.mark.parametrize("window", [None, 5])
def test_flash_attention_is_the_loop(window: int | None) -> None:
    lengths = (3, 17, 1, 64)
    q, k, v = (torch.randn(heads, sum(lengths), 32, device="cuda", dtype=torch.bfloat16) for heads in (8, 2, 2))
    assert varlen_attention.serves(q, v)
    dy = torch.randn_like(q)
    found: list[list[Tensor]] = []
    for dtype, exact in ((torch.bfloat16, False), (torch.float32, True)):
        one, two, three = (t.to(dtype).requires_grad_() for t in (q, k, v))
        if exact:
            y = packed_attention_reference(one, two, three, lengths, 0.2, window)
        else:
            ends = torch.tensor([0, 3, 20, 21, 85], dtype=torch.int32, device="cuda")
            y = varlen_attention.varlen_attention(one, two, three, ends, 64, 0.2, window)
        y.backward(dy.to(dtype))
        found.append([y.detach(), *(cast(Tensor, leaf.grad) for leaf in (one, two, three))])
    for ours, exact in zip(*found, strict=True):
        assert (ours.float() - exact).norm() < 0.01 * exact.norm()


def test_a_bank_s_gradients_are_those_of_the_cpu() -> None:
    found: dict[str, list[Tensor]] = {}
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16)):
        lm, made = bank(dtype, device)
        if dtype == torch.bfloat16:
            assert all(jagged.serves(cast(Tensor, site.working.folded)) for site in made.sites.values())
        reports = train_step(lm, [batch()], optimizers(made, {slot: OptimSpec(lr=1e-30) for slot in SLOTS}), factor=1.0)
        losses = torch.tensor([reports[slot].loss for slot in SLOTS])
        found[f"{device} {dtype}"] = [losses, *(b.grad.cpu() for slot in SLOTS for b in made.blocks(slot))]
    exact, wide, narrow = found.values()
    for true, one, other in zip(exact, wide, narrow, strict=True):
        torch.testing.assert_close(one, true, rtol=1e-4, atol=1e-5)
        assert torch.nn.functional.cosine_similarity(other.flatten(), true.flatten(), dim=0) > 0.998


def test_ten_steps_lower_the_loss_and_a_nan_stays_with_its_slot() -> None:
    lm, made = bank(torch.bfloat16, "cuda")
    own = optimizers(made, {slot: OptimSpec(lr=1e-2) for slot in SLOTS})
    first = train_step(lm, [batch()], own, factor=1.0)
    made.weights["a"].b.fill_(1e28)
    made.publish("a")
    reports = [train_step(lm, [batch()], own, factor=1.0)]
    left = packed({slot: examples(4, seed=at, longest=40) for at, slot in enumerate(SLOTS) if slot != "a"})
    reports += [train_step(lm, [left], own, factor=1.0) for _ in range(9)]
    assert reports[0]["a"].diverged
    for slot in ("b", "c"):
        assert not any(report[slot].diverged for report in reports)
        assert reports[-1][slot].loss < first[slot].loss - 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_in_one_kernel_are_their_formulas(dtype: torch.dtype) -> None:
    x, gate, dy = (torch.randn(33, 256, device="cuda").to(dtype) for _ in range(3))
    weight = torch.rand(256, device="cuda").to(dtype)
    assert one_kernel.serves(x)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]

    def close(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)

    n, dh, m = (torch.empty_like(x) for _ in range(3))
    inverse = fused.rms_norm(x, weight, 1e-5, n)
    fused.rms_norm_backward(dy, x, weight, inverse, dh)
    leaf = x.double().requires_grad_()
    expected = fused.rms_norm_reference(leaf, weight.double(), 1e-5)
    expected.backward(dy.double())
    close(n, expected.detach())
    close(dh, cast(Tensor, leaf.grad))
    fused.swiglu(gate, x, m)
    close(m, fused.swiglu_reference(gate.double(), x.double()))
    targets, weights = torch.arange(33, device="cuda"), torch.rand(33, device="cuda")
    losses, gradient = nll_with_gradient(x.clone(), targets, lambda losses: weights)
    true_losses, true_gradient = nll_reference(x.double(), targets, weights.double())
    close(losses, true_losses)
    close(gradient, true_gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_steps_draw_what_others_do(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the CPU in fp32; in bf16, where the bank goes in jagged groups, against steps that are not recorded. Rows
    are let in many times, in two samplings, so that what a graph reads could have been freed meanwhile."""
    spec = SamplingSpec(max_new_tokens=40, rows=16, temperature=0.7)
    requests = [Request(slot=slot, prompt=(5, 6, 7), seeds=tuple(range(40))) for slot in (*SLOTS, None)]
    replays = 0
    recorder = steps.recorder

    def counted(model: CausalLM) -> Any:
        record = recorder(model)

        def make(step: Any) -> Any:
            assert record is not None
            replay = record(step)

            def again() -> Tensor:
                nonlocal replays
                replays += 1
                return replay()

            return again

        return None if record is None else make

    def drawn(device: str) -> list[list[int]]:
        lm, _ = bank(dtype, device)
        own = Sampler(lm, spec, stop_tokens=frozenset({9, 10}))
        own.sample(requests[:1])
        return [completion.tokens.tolist() for group in own.sample(requests) for completion in group]

    monkeypatch.setattr(sampler, "recorder", counted)
    found = drawn("cuda")
    assert replays > 20
    monkeypatch.setattr(sampler, "recorder", lambda _: None)
    expected = drawn("cpu" if dtype == torch.float32 else "cuda")
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    assert same >= 0.9 * len(found)  # near ties fall otherwise in other sums, and then the texts part


def test_a_step_that_cannot_be_recorded_says_so() -> None:
    lm, _ = bank(torch.float32, "cuda")
    record = steps.recorder(lm)
    assert record is not None
    with pytest.raises(ModelError, match="set LOWREGRET_KERNELS=torch"):
        record(lambda: torch.zeros((), device="cuda") + torch.ones((), device="cuda").item())
