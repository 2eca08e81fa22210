"""The sampler draws what `generate` draws, whoever shares the batch, with the learner's log-probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import peft
import pytest
import torch
import transformers
from tests.tiny import VOCABULARY, bank_on, packed, randomise_b, tiny_llama
from torch import nn

from lowregret.adapters.peft_format import write_adapter
from lowregret.adapters.routing import Routing
from lowregret.batches import Completion, TokenizedExample
from lowregret.models.causal_lm import CausalLM
from lowregret.models.kv_cache import KVCache
from lowregret.models.load import cast_parameters, prepare_module
from lowregret.sampling import sampler
from lowregret.sampling.sampler import Request, Sampler
from lowregret.specs import AdapterSpec, SamplingSpec
from lowregret.training.step import batch_nll

SLOTS = {"a": AdapterSpec(rank=2), "b": AdapterSpec(rank=4, init_seed=1), "c": AdapterSpec(rank=1, init_seed=2)}
GREEDY = SamplingSpec(temperature=0.0, max_new_tokens=9)
WARM = SamplingSpec(max_new_tokens=7)
STOP = frozenset({5, 6, 7, 8, 9})


@pytest.fixture(scope="module")
def model() -> CausalLM:
    lm, bank = bank_on(tiny_llama(), SLOTS)
    for seed, slot in enumerate(SLOTS):
        randomise_b(bank, slot, scale=0.3, seed=seed)
    return lm


def prompts(number: int, *, seed: int = 0, shortest: int = 1, longest: int = 40) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, number)
    return [tuple(int(token) for token in rng.integers(1, VOCABULARY, length)) for length in lengths]


def sampled(
    model: CausalLM, spec: SamplingSpec, requests: list[Request], stop: frozenset[int] = STOP
) -> list[list[Completion]]:
    return Sampler(model, spec, stop_tokens=stop).sample(requests)


def tokens_of(completions: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.tokens.tolist() for completion in own] for own in completions]


def generated(module: Any, prompt: tuple[int, ...], stop: frozenset[int]) -> list[int]:
    """Greedy tokens by transformers, with its own attention and cache."""
    output = module.generate(
        torch.tensor([prompt]), max_new_tokens=9, do_sample=False, eos_token_id=sorted(stop) or None, pad_token_id=0
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's call, not ours
def test_greedy_tokens_of_a_mixed_batch_are_those_of_generate_with_peft(model: CausalLM, tmp_path) -> None:
    chosen = prompts(5)
    requests = [Request(slot=slot, prompt=prompt, seeds=(0,)) for prompt in chosen for slot in (*SLOTS, None)]
    ours = iter(tokens_of(sampled(model, GREEDY, requests)))
    base = tiny_llama()
    cast(Any, base).set_attn_implementation("eager")
    for slot in SLOTS:
        write_adapter(cast(Any, model.trainable), slot, tmp_path / slot, base_model="tiny")
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "a", adapter_name="a")
    for slot in ("b", "c"):
        adapted.load_adapter(tmp_path / slot, adapter_name=slot)
    for prompt in chosen:
        for slot in SLOTS:
            adapted.set_adapter(slot)
            assert next(ours) == [generated(adapted, prompt, STOP)]
        with adapted.disable_adapter():
            assert next(ours) == [generated(adapted, prompt, STOP)]


def tiny_of(family: str) -> nn.Module:
    """Attention that is more than Llama's: a sliding window, a soft cap, norms of queries and keys."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "initializer_range": 0.1, "pad_token_id": 0,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    match family:
        case "mistral":
            config: Any = transformers.MistralConfig(**shape, sliding_window=6)
            return transformers.MistralForCausalLM(config)
        case "qwen3":
            return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape, head_dim=8))
        case _:
            config = transformers.Gemma2Config(
                **shape, head_dim=8, sliding_window=6, attn_logit_softcapping=2.0, query_pre_attn_scalar=8
            )
            return transformers.Gemma2ForCausalLM(config)


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma2"])
def test_other_attentions_give_the_tokens_of_generate(family: str) -> None:
    chosen = prompts(4, seed=3, shortest=2, longest=12)
    module = tiny_of(family).eval()
    cast(Any, module).set_attn_implementation("eager")
    expected = [[generated(module, prompt, frozenset())] for prompt in chosen]
    requests = [Request(slot=None, prompt=prompt, seeds=(0,)) for prompt in chosen]
    ours = sampled(CausalLM(prepare_module(module)), GREEDY, requests, frozenset())
    assert tokens_of(ours) == expected


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_a_completion_does_not_depend_on_who_shares_its_batch(model: CausalLM, rows: int) -> None:
    chosen = prompts(6, seed=1)
    requests = [
        Request(slot=slot, prompt=prompt, seeds=tuple(range(10 * index, 10 * index + 3)))
        for index, prompt in enumerate(chosen)
        for slot in SLOTS
    ]
    together = sampled(model, replace(WARM, rows=rows), requests)
    for request, own in zip(requests, together, strict=True):
        for seed, completion in zip(request.seeds, own, strict=True):
            ((alone,),) = sampled(model, WARM, [replace(request, seeds=(seed,))])
            assert completion.tokens.tolist() == alone.tokens.tolist()
            assert completion.stopped == alone.stopped
            np.testing.assert_allclose(completion.logprobs, alone.logprobs, rtol=1e-5, atol=1e-5)


def test_some_completions_of_the_tests_above_end_early_and_some_do_not(model: CausalLM) -> None:
    requests = [Request(slot="a", prompt=prompt, seeds=(0, 1, 2, 3)) for prompt in prompts(6, seed=1)]
    ends = {completion.stopped for own in sampled(model, WARM, requests) for completion in own}
    assert ends == {True, False}


def test_a_group_read_once_is_its_completions_read_one_by_one(model: CausalLM) -> None:
    (prompt,) = prompts(1, seed=2)
    seeds = tuple(range(8))
    (group,) = sampled(model, WARM, [Request(slot="b", prompt=prompt, seeds=seeds)])
    apart = sampled(model, WARM, [Request(slot="b", prompt=prompt, seeds=(seed,)) for seed in seeds])
    assert [c.tokens.tolist() for c in group] == [c.tokens.tolist() for (c,) in apart]
    assert len({tuple(c.tokens.tolist()) for c in group}) > 4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_the_learners(model: CausalLM, temperature: float) -> None:
    """To fp64's precision in fp64; in fp32 the sampler is as close to fp64 as the learner is."""
    exact, bank = bank_on(tiny_llama(), SLOTS, dtype=torch.float64)
    for seed, slot in enumerate(SLOTS):
        randomise_b(bank, slot, scale=0.3, seed=seed)
    spec = replace(WARM, temperature=temperature)
    requests = [
        Request(slot=slot, prompt=prompt, seeds=(1, 2)) for slot in SLOTS for prompt in prompts(3, seed=4, shortest=2)
    ]
    for drawing in (exact, model):
        documents: dict[str, list[TokenizedExample]] = {slot: [] for slot in SLOTS}
        drawn: list[float] = []
        for request, own in zip(requests, sampled(drawing, spec, requests), strict=True):
            for completion in own:
                tokens = np.concatenate([np.array(request.prompt), completion.tokens]).astype(np.int32)
                mask = np.arange(len(tokens)) >= len(request.prompt)
                documents[cast(str, request.slot)].append(TokenizedExample(tokens=tokens, completion=mask))
                drawn += completion.logprobs.tolist()
        true = -batch_nll(exact, packed(documents), temperature=temperature)
        if drawing is exact:
            np.testing.assert_allclose(drawn, true, atol=1e-6)  # kept in fp32
        else:
            learners = -batch_nll(model, packed(documents), temperature=temperature)
            assert np.abs(np.array(drawn) - true.numpy()).max() < 3 * float((learners - true).abs().max()) < 2e-3


def test_in_bf16_they_are_the_learners_but_for_its_rounding() -> None:
    lm, bank = bank_on(tiny_llama(), SLOTS, dtype=torch.bfloat16)
    for seed, slot in enumerate(SLOTS):
        randomise_b(bank, slot, scale=0.3, seed=seed)
    (prompt,) = prompts(1, seed=5, shortest=20)
    (own,) = sampled(lm, WARM, [Request(slot="a", prompt=prompt, seeds=(1, 2, 3))])
    for completion in own:
        tokens = np.concatenate([np.array(prompt), completion.tokens]).astype(np.int32)
        example = TokenizedExample(tokens=tokens, completion=np.arange(len(tokens)) >= len(prompt))
        np.testing.assert_allclose(completion.logprobs, -batch_nll(lm, packed({"a": [example]})), atol=0.1)


def test_what_is_drawn_follows_the_model(model: CausalLM) -> None:
    """4,000 first tokens against the softmax: chi-squared over the tokens expected at least five times."""
    (prompt,) = prompts(1, seed=6, shortest=8)
    number = 4000
    (own,) = sampled(
        model,
        replace(WARM, max_new_tokens=1, rows=number),
        [Request(slot="c", prompt=prompt, seeds=tuple(range(number)))],
    )
    counts = np.bincount([int(c.tokens[0]) for c in own], minlength=VOCABULARY)
    with model.routed(Routing.from_lengths({"c": len(prompt)})):
        batch = packed({"c": [TokenizedExample(tokens=np.array(prompt), completion=np.ones(len(prompt), bool))]})
        hidden = model.hidden(batch)[-1:].detach()
    with model.routed(Routing.from_lengths({"c": 1})):
        expected = torch.softmax(model.logits(hidden).detach(), -1)[0].numpy() * number
    often = expected >= 5
    statistic = (((counts - expected) ** 2) / expected)[often].sum()
    degrees = int(often.sum())
    assert degrees > 20
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5


def test_a_stop_string_ends_a_completion_and_stays_in_it(model: CausalLM) -> None:
    def decode(tokens: list[int]) -> str:
        return "".join(chr(65 + token % 4) for token in tokens)

    spec = SamplingSpec(max_new_tokens=40, stop=("AB", "CD"))
    requests = [Request(slot="a", prompt=(1, 2, 3), seeds=tuple(range(12)))]
    (own,) = Sampler(model, spec, stop_tokens=frozenset(), decode=decode).sample(requests)
    for completion in own:
        text = decode(completion.tokens.tolist())
        assert completion.stopped == text.endswith(("AB", "CD"))
        assert not any(string in text[:-1] for string in spec.stop)
    assert any(completion.stopped for completion in own)


def test_an_empty_prompt_is_refused(model: CausalLM) -> None:
    with pytest.raises(ValueError, match="a prompt is empty"):
        sampled(model, WARM, [Request(slot="a", prompt=(), seeds=(0,))])


def test_nothing_asked_is_nothing_said(model: CausalLM) -> None:
    assert sampled(model, WARM, []) == []


def test_full_weights_are_sampled_too() -> None:
    module = tiny_llama()
    cast(Any, module).set_attn_implementation("eager")
    expected = generated(module, (3, 4, 5), STOP)
    lm = CausalLM(prepare_module(cast_parameters(module, torch.float32)))
    assert tokens_of(sampled(lm, GREEDY, [Request(slot="full", prompt=(3, 4, 5), seeds=(0,))])) == [[expected]]


def test_prompts_are_read_in_several_passes(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(slot=slot, prompt=prompt, seeds=(0, 1)) for slot in SLOTS for prompt in prompts(5, seed=8)]
    whole = sampled(model, WARM, requests)
    monkeypatch.setattr(sampler, "PREFILL_TOKENS", 16)
    assert tokens_of(sampled(model, WARM, requests)) == tokens_of(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wide_banks_are_sampled_as_narrow_ones(dtype: torch.dtype) -> None:
    """More adapter columns than a quarter of the width: the other layouts of `adapters.grouped` and `stacked`."""
    specs = {name: AdapterSpec(rank=8, init_seed=seed) for seed, name in enumerate("abc")}
    together, bank = bank_on(tiny_llama(), specs, dtype=dtype)
    for seed, name in enumerate(specs):
        randomise_b(bank, name, scale=0.3, seed=seed)
    chosen = prompts(3, seed=9)
    mixed = iter(sampled(together, GREEDY, [Request(slot=n, prompt=p, seeds=(0,)) for n in specs for p in chosen]))
    for seed, name in enumerate(specs):
        alone, own = bank_on(tiny_llama(), {name: specs[name]}, dtype=dtype)
        randomise_b(own, name, scale=0.3, seed=seed)
        for prompt in chosen:
            (ours,) = next(mixed)
            ((theirs,),) = sampled(alone, GREEDY, [Request(slot=name, prompt=prompt, seeds=(0,))])
            if dtype == torch.float32:
                assert ours.tokens.tolist() == theirs.tokens.tolist()
            # In bf16 near ties may fall otherwise, and then the texts part; the first token's likelihood may not.
            np.testing.assert_allclose(
                ours.logprobs[0], theirs.logprobs[0], atol=1e-5 if dtype == torch.float32 else 0.1
            )


def test_what_a_broken_slot_left_in_the_cache_reaches_nobody() -> None:
    specs = {"wild": AdapterSpec(rank=2), "calm": AdapterSpec(rank=2, init_seed=1)}
    lm, bank = bank_on(tiny_llama(), specs)
    for seed, name in enumerate(specs):
        randomise_b(bank, name, scale=0.3, seed=seed)
    for block in bank.blocks("wild"):
        block.value.mul_(1e12)
    bank.publish("wild")
    long, short = prompts(1, seed=1, shortest=24)[0], (3, 4, 5)
    requests = [Request(slot="wild", prompt=long, seeds=(0,)), Request(slot="calm", prompt=short, seeds=(0, 1))]
    broken, calm = sampled(lm, replace(WARM, rows=1), requests, frozenset())
    assert not np.isfinite(broken[0].logprobs).all()
    (alone,) = sampled(lm, WARM, requests[1:], frozenset())
    assert [c.tokens.tolist() for c in calm] == [c.tokens.tolist() for c in alone]


def test_a_row_that_moves_leaves_nothing_of_the_row_that_stood_there() -> None:
    """A mask can't hide a NaN."""
    cache = KVCache(rows=2, length=32)
    keys, values = cache.of(0, torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
    for cached in (keys, values):
        cached[0], cached[1, :, :3] = torch.nan, 2.0
    cache.move(1, 0, 3)
    assert bool((keys[0, :, :3] == 2.0).all())
    assert not bool((keys[0].isnan() | values[0].isnan()).any())
