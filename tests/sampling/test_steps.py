"""Recorded decoding steps: what a replay computes from its integers is what the step would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import transformers
from tests.sampling import test_sampler
from tests.sampling.test_sampler import SLOTS, STOP, WARM, prompts, sampled, tokens_of
from torch import Tensor

from lowregret.kernels import native
from lowregret.models.causal_lm import CausalLM
from lowregret.models.load import prepare_module
from lowregret.sampling import sampler, steps
from lowregret.sampling.sampler import Request

model = test_sampler.model  # the same three slots


class Recorder:
    """Replays a step from the tensors that it was recorded with, into one place: what a CUDA graph does to memory.

    Unlike a graph it runs the step's Python again; `tests/models/test_gpu.py` records real ones.
    """

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recorded += 1
        place = torch.empty_like(step())

        def replay() -> Tensor:
            self.replayed += 1
            return place.copy_(step())

        return replay


def requests(slots: list[str]) -> list[Request]:
    chosen = prompts(5, seed=11)
    return [
        Request(slot=slot, prompt=prompt, seeds=tuple(range(4 * at, 4 * at + 4)))
        for at, prompt in enumerate(chosen)
        for slot in slots
    ]


@pytest.mark.parametrize("slots", [["a"], list(SLOTS)])
@pytest.mark.parametrize("rows", [3, 16, 64])
def test_recorded_steps_draw_what_plain_ones_do(
    model: CausalLM, slots: list[str], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(WARM, rows=rows, max_new_tokens=20)
    monkeypatch.setattr(native, "serves", lambda _: False)
    plain = sampled(model, spec, requests(slots), STOP)
    recorder = Recorder()
    monkeypatch.setattr(sampler, "recorder", lambda _: recorder)
    monkeypatch.setattr(steps, "SEEN_MULTIPLE", 32)
    assert tokens_of(sampled(model, spec, requests(slots), STOP)) == tokens_of(plain)
    assert recorder.replayed >= recorder.recorded > 0


@pytest.mark.parametrize("slots", [["a"], list(SLOTS)])
def test_a_row_that_ends_does_not_change_how_a_step_looks(
    model: CausalLM, slots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows end one after another; idle ones take their places, so that few steps are recorded."""
    recorder = Recorder()
    monkeypatch.setattr(sampler, "recorder", lambda _: recorder)
    (prompt,) = prompts(1, seed=2)
    wanted = [Request(slot=slot, prompt=prompt, seeds=tuple(range(16))) for slot in slots]
    found = sampled(model, replace(WARM, rows=64, max_new_tokens=40), wanted)
    assert len({completion.num_tokens for own in found for completion in own}) > 3
    assert recorder.recorded <= 5 < recorder.replayed


def test_the_shapes_that_were_seen_last_are_kept(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(sampler, "recorder", lambda _: recorder)
    monkeypatch.setattr(steps, "MOST_RECORDED", 1)
    spec = replace(WARM, rows=6, max_new_tokens=20)
    plain = sampled(model, spec, requests(list(SLOTS)), STOP)
    assert tokens_of(sampled(model, spec, requests(list(SLOTS)), STOP)) == tokens_of(plain)
    assert recorder.replayed > recorder.recorded > 1


@pytest.mark.parametrize(("rope", "repeats"), [("default", True), ("llama3", True), ("dynamic", False)])
def test_positions_that_have_to_be_looked_at_are_not_recorded(rope: str, repeats: bool) -> None:
    own = {"llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=96,
        max_position_embeddings=128,
        pad_token_id=0,
        rope_parameters={"rope_type": rope, "rope_theta": 1e4, "factor": 2.0, **own.get(rope, {})},
    )
    module = prepare_module(transformers.LlamaForCausalLM(config))
    assert CausalLM(module).repeats == repeats
    assert not CausalLM(module, fast=False).repeats


def test_steps_are_recorded_on_cuda_alone(model: CausalLM) -> None:
    assert steps.recorder(model) is None
