"""At ratio 1 the step is REINFORCE by hand; every option's weights are autograd of its objective; batches add up."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.tiny import VOCABULARY, bank_on, randomise_b, tiny_llama
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.routing import Routing
from lowregret.batches import Completion, Rollout, RolloutGroup
from lowregret.models.attention import Packing
from lowregret.models.causal_lm import CausalLM
from lowregret.models.fused import rms_norm_reference
from lowregret.objectives.policy_gradient import Sampled, sequence_ratios, surrogate, token_ratios, weights
from lowregret.sampling.sampler import Request, Sampler
from lowregret.specs import AdapterSpec, OptimSpec, PolicyGradientSpec, RewardSpec, RLSpec, SamplingSpec
from lowregret.training.optimizer import AdamW
from lowregret.training.policy_step import PolicyStep, policy_step

RL = RLSpec(rewards=(RewardSpec(source="exact"),), group=4, sampling=SamplingSpec(max_new_tokens=5))


def bank_model(dtype: torch.dtype = torch.float64) -> tuple[CausalLM, AdapterBank]:
    lm, bank = bank_on(tiny_llama(), {"a": AdapterSpec(rank=2), "b": AdapterSpec(rank=3, init_seed=1)}, dtype=dtype)
    for seed, slot in enumerate(("a", "b")):
        randomise_b(bank, slot, scale=0.2, seed=seed)
    return lm, bank


def groups_of(
    lm: CausalLM, slot: str, *, number: int = 5, seed: int = 0, rl: RLSpec = RL, longer: int = 0
) -> list[RolloutGroup]:
    """Real completions with made-up rewards; the last group's are all equal."""
    rng = np.random.default_rng(seed)
    lengths = [longer + int(rng.integers(1, 9)) for _ in range(number)]
    prompts = [tuple(int(t) for t in rng.integers(1, VOCABULARY, length)) for length in lengths]
    requests = [
        Request(slot=slot, prompt=prompt, seeds=tuple(range(i, i + rl.group))) for i, prompt in enumerate(prompts)
    ]
    sampled = Sampler(lm, rl.sampling, stop_tokens=frozenset({3, 4, 5, 6})).sample(requests)
    groups: list[RolloutGroup] = []
    for index, own in enumerate(sampled):
        rewards = rng.integers(0, 2, len(own)) if index < number - 1 else np.ones(len(own))
        rollouts = [
            Rollout(completion=said, text="", reward=float(reward), failure="")
            for said, reward in zip(own, rewards, strict=True)
        ]
        groups.append(RolloutGroup(problem=index, prompt=prompts[index], rollouts=tuple(rollouts)))
    return groups


def step(
    lm: CausalLM, bank: AdapterBank, groups: dict[str, list[RolloutGroup]], rl: RLSpec, **settings: Any
) -> dict[str, PolicyStep]:
    optimizers = {slot: AdamW(OptimSpec(lr=1e-3), bank.blocks(slot)) for slot in groups}
    return policy_step(lm, groups, optimizers, rl, tokens_per_microbatch=settings.get("tokens", 10_000), factor=1.0)


def gradients(bank: AdapterBank, slot: str) -> Tensor:
    return torch.cat([block.grad.clone() for block in bank.blocks(slot)])


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """By norms: the sampler's log-probabilities are fp32, and single entries are small differences of large sums."""
    return float((found - expected).norm() / expected.norm())


def reinforce_by_hand(slot: str, groups: list[RolloutGroup]) -> Tensor:
    """Gradient of -sum(advantage * log p) / completions: one completion at a time, one softmax after another."""
    _, bank = bank_model()
    number = sum(len(group.rollouts) for group in groups)
    total: Tensor | None = None
    for group in groups:
        mean = sum(rollout.reward for rollout in group.rollouts) / len(group.rollouts)
        for rollout in group.rollouts:
            said = rollout.completion
            gradient = loglikelihood_gradient(bank, slot, group.prompt, said)
            part = -(rollout.reward - mean) / number * gradient
            total = part if total is None else total + part
    assert total is not None
    return total


def loglikelihood_gradient(bank: AdapterBank, slot: str, prompt: tuple[int, ...], said: Completion) -> Tensor:
    """d log p(completion | prompt) / d (A, B), by autograd on the formula of LoRA with plain tensors."""
    weights_of = bank.weights[slot]
    a = {site: v.clone().requires_grad_() for site, v in weights_of.a_of.items()}
    b = {site: v.clone().requires_grad_() for site, v in weights_of.b_of.items()}
    plain: Any = tiny_llama().double()
    plain.requires_grad_(False)
    for module in plain.modules():
        if isinstance(module, LlamaRMSNorm):  # transformers' takes fp32 for its norm, whatever the model's format
            exact = partial(rms_norm_reference, weight_D=module.weight, eps=module.variance_epsilon)
            cast(Any, module).forward = exact
    scaling = weights_of.spec.scaling
    for site in a:
        linear = plain.get_submodule(site)

        def adapted(module: Any, inputs: tuple[Tensor], output: Tensor, site: str = site) -> Tensor:
            return output + scaling * (inputs[0] @ a[site].T) @ b[site].T

        linear.register_forward_hook(adapted)
    plain.set_attn_implementation("sdpa")  # the eager one takes its softmax in fp32
    tokens = torch.tensor([[*prompt, *said.tokens.tolist()]])
    logprobs = torch.log_softmax(plain(input_ids=tokens).logits[0], -1)
    positions = range(len(prompt) - 1, tokens.shape[1] - 1)
    total = torch.stack([logprobs[at, tokens[0, at + 1]] for at in positions]).sum()
    grads = torch.autograd.grad(total, [*a.values(), *b.values()])
    return torch.cat([grad.flatten() for grad in grads])


def test_at_ratio_one_it_is_reinforce_by_hand() -> None:
    lm, bank = bank_model()
    groups = groups_of(lm, "a")
    reports = step(lm, bank, {"a": groups}, RL)
    expected = reinforce_by_hand("a", groups)
    assert relative_difference(gradients(bank, "a"), expected) < 1e-5
    assert float(expected.norm()) > 1e-3
    # fp32 log-probabilities of the sampler against fp64 ones of the learner
    assert reports["a"].ratio_mean == pytest.approx(1.0, abs=1e-5)
    assert reports["a"].ratio_max == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("budget", [10_000, 70, 1])
def test_a_prompt_that_is_computed_once_teaches_what_its_completions_do(budget: int) -> None:
    lm, bank = bank_model()
    groups = groups_of(lm, "a", longer=20)
    report = step(lm, bank, {"a": groups}, RL, tokens=budget)["a"]
    expected = reinforce_by_hand("a", groups)
    assert relative_difference(gradients(bank, "a"), expected) < 1e-5
    assert report.ratio_max == pytest.approx(1.0, abs=1e-5)
    inputs = [
        (len(group.prompt), {tuple(r.completion.tokens[:-1].tolist()) for r in group.rollouts})
        for group in groups
        if group.has_signal
    ]
    once = sum(prompt + sum(map(len, own)) for prompt, own in inputs)
    each = sum(prompt * len(own) + sum(map(len, own)) for prompt, own in inputs)
    # Within a budget of two or three completions a prompt is computed for as many; within none for each alone.
    least, most = {10_000: (once, once), 70: (once + 1, each - 1), 1: (each, each)}[budget]
    assert least <= report.tokens <= most
    assert 2 * once < each


def test_slots_side_by_side_are_slots_alone() -> None:
    lm, bank = bank_model()
    groups = {slot: groups_of(lm, slot, seed=seed) for seed, slot in enumerate(("a", "b"))}
    step(lm, bank, groups, RL)
    together = {slot: gradients(bank, slot) for slot in groups}
    for slot, own in groups.items():
        fresh_lm, fresh_bank = bank_model()
        step(fresh_lm, fresh_bank, {slot: own}, RL)
        torch.testing.assert_close(gradients(fresh_bank, slot), together[slot], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", [PolicyGradientSpec(), PolicyGradientSpec(ratio="sequence", normaliser="tokens")])
def test_micro_batches_add_up(spec: PolicyGradientSpec) -> None:
    rl = replace(RL, objective=spec)
    lm, bank = bank_model()
    groups = {slot: groups_of(lm, slot, seed=seed, rl=rl, longer=12 * seed) for seed, slot in enumerate(("a", "b"))}
    randomise_b(bank, "a", scale=0.1, seed=9)  # the learner has moved since: ratios are no longer 1
    whole_lm, whole_bank = bank_at(bank)
    whole = step(whole_lm, whole_bank, groups, rl)
    expected = {slot: gradients(whole_bank, slot) for slot in groups}
    for tokens in (20, 60):
        lm, moved = bank_at(bank)
        parts = step(lm, moved, groups, rl, tokens=tokens)
        assert parts["a"].objective == pytest.approx(whole["a"].objective, abs=1e-9)
        assert parts["a"].ratio_max == pytest.approx(whole["a"].ratio_max)
        assert parts["a"].ratio_max > 1.01
        assert parts["b"].grad_norm == pytest.approx(whole["b"].grad_norm, rel=1e-9)
        for slot in groups:
            torch.testing.assert_close(gradients(moved, slot), expected[slot], rtol=1e-9, atol=1e-12)


def bank_at(bank: AdapterBank) -> tuple[CausalLM, AdapterBank]:
    """A new model with the same adapters."""
    lm, fresh = bank_model()
    for slot, own in bank.weights.items():
        fresh.weights[slot].a.copy_(own.a)
        fresh.weights[slot].b.copy_(own.b)
        fresh.publish(slot)
    return lm, fresh


SPECS = {
    "plain": PolicyGradientSpec(),
    "ppo": PolicyGradientSpec(clip_low=0.2, clip_high=0.3),
    "one-sided": PolicyGradientSpec(clip_high=0.1),
    "truncated": PolicyGradientSpec(truncate=1.1),
    "sequence": PolicyGradientSpec(ratio="sequence"),
    "sequence, clipped": PolicyGradientSpec(ratio="sequence", clip_low=0.1, clip_high=0.1),
    "kl": PolicyGradientSpec(kl=0.1),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_weights_are_the_derivative_of_the_objective(spec: PolicyGradientSpec) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 5, 1, 7, 4])
    completions = torch.repeat_interleave(torch.arange(5), lengths)
    old = -torch.rand(20, generator=generator, dtype=torch.float64) * 3
    gains = torch.tensor([1.0, -0.5, 0.25, -1.0, 0.75], dtype=torch.float64)[completions]
    base = old + 0.5 * torch.randn(20, generator=generator, dtype=torch.float64) if spec.kl else None
    sampled = Sampled(logprobs=old, advantages=gains, completions=completions, base_logprobs=base)
    logprobs = (old + 0.4 * torch.randn(20, generator=generator, dtype=torch.float64)).requires_grad_()
    ratios = (sequence_ratios if spec.ratio == "sequence" else token_ratios)(logprobs, sampled)
    (derivative,) = torch.autograd.grad(surrogate(logprobs, ratios, sampled, spec).sum(), logprobs)
    found = weights(logprobs.detach(), ratios.detach(), sampled, spec)
    torch.testing.assert_close(found, derivative)
    if spec.clip_high is not None:
        assert (found == 0).any()


def test_ratios_by_hand() -> None:
    sampled = Sampled(
        logprobs=torch.zeros(3), advantages=torch.ones(3), completions=torch.tensor([0, 0, 1]), base_logprobs=None
    )
    logprobs = torch.log(torch.tensor([4.0, 1.0, 3.0]))
    torch.testing.assert_close(token_ratios(logprobs, sampled), torch.tensor([4.0, 1.0, 3.0]))
    torch.testing.assert_close(sequence_ratios(logprobs, sampled), torch.tensor([2.0, 2.0, 3.0]))


def test_without_a_signal_nothing_moves() -> None:
    lm, bank = bank_model()
    dull = groups_of(lm, "a")[-1:]
    before = {slot: (w.a.clone(), w.b.clone()) for slot, w in bank.weights.items()}
    (report,) = step(lm, bank, {"a": dull}, RL).values()
    assert not report.updated
    assert report.grad_norm == 0.0
    for slot, (a, b) in before.items():
        assert torch.equal(bank.weights[slot].a, a)
        assert torch.equal(bank.weights[slot].b, b)


def test_divergence_from_the_base_pulls_back_without_any_reward() -> None:
    rl = replace(RL, objective=PolicyGradientSpec(kl=1.0))
    lm, bank = bank_model()
    dull = groups_of(lm, "a", number=8)[-1:]
    (report,) = step(lm, bank, {"a": dull}, rl).values()
    assert report.updated
    assert report.kl is not None
    assert report.grad_norm > 0


def test_a_repeated_completion_weighs_as_often_as_it_was_drawn() -> None:
    lm, bank = bank_model()
    (group,) = groups_of(lm, "a", number=2)[:1]
    first, second = group.rollouts[0], replace(group.rollouts[1], reward=1.0 - group.rollouts[0].reward)
    repeated = replace(group, rollouts=(first, second, first, first))
    (report,) = step(lm, bank, {"a": [repeated]}, RL).values()
    expected = reinforce_by_hand("a", [repeated])
    assert relative_difference(gradients(bank, "a"), expected) < 1e-5
    assert report.tokens < sum(len(repeated.prompt) + r.completion.num_tokens for r in repeated.rollouts)


def one_token_group(lm: CausalLM, slot: str, prompt: tuple[int, ...], number: int, rewards: str) -> RolloutGroup:
    """Many answers of one token, so that what is exact is near."""
    request = Request(slot=slot, prompt=prompt, seeds=tuple(range(number)))
    (drawn,) = Sampler(lm, SamplingSpec(max_new_tokens=1, rows=number), stop_tokens=frozenset()).sample([request])
    values = [1.0] * number if rewards == "equal" else [float(said.tokens[0] % 2) for said in drawn]
    rollouts = [
        Rollout(completion=said, text="", reward=value, failure="") for said, value in zip(drawn, values, strict=True)
    ]
    return RolloutGroup(problem=0, prompt=prompt, rollouts=tuple(rollouts))


def distributions(lm: CausalLM, slot: str, prompt: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the first answer token under the slot and under the base."""
    tokens, positions = torch.tensor(prompt), torch.arange(len(prompt))
    found: list[Tensor] = []
    for name in (slot, None):
        with torch.no_grad(), lm.routed(Routing.from_lengths({name: len(prompt)})):
            hidden = lm.hidden_of(tokens, positions, Packing(lengths=(len(prompt),)))
        with torch.no_grad(), lm.routed(Routing.from_lengths({name: 1})):
            found.append(torch.log_softmax(lm.logits(hidden[-1:])[0], -1))
    return found[0], found[1]


def divergence(lm: CausalLM, prompt: tuple[int, ...]) -> float:
    own, base = distributions(lm, "a", prompt)
    return float((own.exp() * (own - base)).sum())


PROMPT = (5, 17, 30, 2)


def test_logged_divergence_is_that_of_what_was_drawn_repeats_included() -> None:
    rl = replace(RL, objective=PolicyGradientSpec(kl=0.1))
    lm, bank = bank_model()
    group = one_token_group(lm, "a", PROMPT, 256, "odd")
    own, base = distributions(lm, "a", PROMPT)
    tokens = [int(rollout.completion.tokens[0]) for rollout in group.rollouts]
    assert len(set(tokens)) < 100
    expected = float(np.mean([float(own[token] - base[token]) for token in tokens]))
    (report,) = step(lm, bank, {"a": [group]}, rl).values()
    assert report.kl == pytest.approx(expected, abs=1e-5)
    assert report.kl == pytest.approx(divergence(bank_model()[0], PROMPT), abs=0.15)
    assert report.ratio_mean == pytest.approx(1.0, abs=1e-5)


def test_a_price_on_divergence_lowers_it() -> None:
    rl = replace(RL, objective=PolicyGradientSpec(kl=1.0))
    lm, bank = bank_model()
    before = divergence(lm, PROMPT)
    for _ in range(8):
        step(lm, bank, {"a": [one_token_group(lm, "a", PROMPT, 4096, "equal")]}, rl)
    assert divergence(lm, PROMPT) < 0.97 * before


def test_weights_that_overflow_retire_their_slot_and_no_other() -> None:
    lm, bank = bank_model(torch.float32)
    healthy = groups_of(lm, "a")
    alone = gradients_after(lm, bank, {"a": healthy})
    lm, bank = bank_model(torch.float32)
    for block in bank.blocks("b"):
        block.value.mul_(1e12)
    bank.publish("b")
    wild = groups_of(lm, "b")
    assert any(not np.isfinite(r.completion.logprobs).all() for group in wild for r in group.rollouts)
    reports = step(lm, bank, {"a": groups_of(lm, "a"), "b": wild}, RL)
    assert reports["b"].diverged
    assert not reports["a"].diverged
    assert bank.slots == ("a",)
    torch.testing.assert_close(gradients(bank, "a"), alone)


def gradients_after(lm: CausalLM, bank: AdapterBank, groups: dict[str, list[RolloutGroup]]) -> Tensor:
    step(lm, bank, groups, RL)
    return gradients(bank, next(iter(groups)))
