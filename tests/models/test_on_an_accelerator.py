"""What runs on a GPU, on the `meta` device: devices and shapes fit, nothing waits for a number, little is sent.

Meta tensors have a device and a shape and no numbers, as an accelerator's have none that the processor could look at
without waiting. The paths that CUDA takes are asked for; the numbers of each are held by tests on the CPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lowregret.adapters import jagged
from lowregret.adapters.routing import Routing
from lowregret.models import varlen_attention
from lowregret.models.attention import Head, Packing
from lowregret.models.causal_lm import CausalLM
from lowregret.models.kv_cache import DecodingStep, KVCache, Recording
from lowregret.specs import AdapterSpec
from tiny import bank_on, examples, packed, tiny_llama

META = torch.device("meta")


class Sent(TorchDispatchMode):
    """Counts tensors that go from the CPU to the device: each is a wait, and none may go while a step is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [arg.device.type for arg in args if isinstance(arg, torch.Tensor) and arg.dim()]
        arrived = isinstance(result, torch.Tensor) and result.device == META
        self.number += arrived and "cpu" in given
        return result


SLOTS = {"a": AdapterSpec(rank=4), "b": AdapterSpec(rank=6, targets=("mlp",), init_seed=1)}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> CausalLM:
    """A bank that was made on the CPU, and then lost its numbers."""
    lm, bank = bank_on(tiny_llama(width=64), SLOTS, dtype=torch.bfloat16)
    lm.model.to(META)
    for layer in bank.sites.values():
        own = layer.working
        assert own.folded is not None
        layer.working = replace(own, folded=own.folded.to(META), down=own.down.to(META), up=own.up.to(META))
        layer.gradients = {slot: (a.to(META), b.to(META)) for slot, (a, b) in layer.gradients.items()}
    monkeypatch.setattr(varlen_attention, "serves", lambda q, v: True)
    monkeypatch.setattr(jagged, "serves", lambda folded: True)
    return lm


@pytest.mark.parametrize("recompute", [False, True])
def test_a_forward_and_backward(model: CausalLM, recompute: bool) -> None:
    batch = packed({slot: examples(3, seed=at) for at, slot in enumerate(SLOTS)}).to(META)
    model.use_activation_checkpointing(recompute)
    with model.routed(Routing.from_lengths(batch.slot_lengths)), Sent() as sent:
        hidden = model.hidden(batch)
        hidden.backward(torch.empty_like(hidden))
    assert sent.number == 5  # where documents begin, and who owns which columns of the MLPs, once for all layers
    assert hidden.device == META
    assert hidden.shape == (batch.tokens.numel(), 64)


@torch.no_grad()
def test_prompts_and_a_decoding_step(model: CausalLM) -> None:
    cache = KVCache(rows=4, length=32)
    recording = Recording(packing=Packing(lengths=(3, 5)))
    with model.routed(Routing.from_lengths({"a": 3, "b": 5})):
        positions = torch.cat([torch.arange(3, device=META), torch.arange(5, device=META)])
        model.hidden_of(torch.zeros(8, dtype=torch.int64, device=META), positions, recording)
    cache.fill(slice(0, 2), recording, 0)
    integers = torch.zeros(3, 4, dtype=torch.int64, device=META)
    step = DecodingStep(cache, rows=integers[1], positions=integers[2], seen=32, in_order=False)
    with model.routed(Routing.from_lengths({"a": 2, "b": 2})):
        with Sent() as first:
            logits = model.logits(model.hidden_of(integers[0], step.positions, step))
        with Sent() as again:
            model.hidden_of(integers[0], step.positions, step)
    assert first.number == 4  # who owns which columns
    assert again.number == 0
    assert logits.shape == (4, model.vocab_size)
    assert logits.device == META


@pytest.mark.parametrize(("window", "left"), [(None, -1), (4, 3), (9, -1)])
def test_documents_and_windows_reach_the_kernel_as_it_counts_them(
    window: int | None, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T H C in, cumulative lengths, positions to the left without a query's own."""
    given: dict[str, object] = {}

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: object, **named: object) -> torch.Tensor:
        given.update(named, shapes=(q.shape, k.shape, v.shape), rest=rest)
        return q

    monkeypatch.setattr(varlen_attention, "serves", lambda q, v: True)
    monkeypatch.setattr(varlen_attention, "varlen_attn", kernel)
    q_HTC, k_KTC = torch.randn(4, 9, 8), torch.randn(2, 9, 8)
    head = Head(layer=0, scaling=0.5, window=window)
    attended = Packing(lengths=(3, 6)).attend(q_HTC, k_KTC, k_KTC, head)
    assert torch.equal(attended, q_HTC)
    assert given["shapes"] == ((9, 4, 8), (9, 2, 8), (9, 2, 8))
    starts, _, *longest = given["rest"]  # pyright: ignore[reportGeneralTypeIssues]
    assert starts.tolist() == [0, 3, 9]
    assert starts.dtype == torch.int32
    assert longest == [6, 6]
    assert (given["scale"], given["window_size"], given["enable_gqa"]) == (0.5, (left, 0), True)


def test_the_ways_of_a_gpu_are_not_taken_on_the_cpu() -> None:
    q_HTC = torch.zeros(2, 3, 8, dtype=torch.bfloat16)
    assert not varlen_attention.serves(q_HTC, q_HTC)
    assert not jagged.serves(q_HTC)
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
