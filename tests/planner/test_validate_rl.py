"""What a run of RL may ask for: every refusal is one line that names the field and the remedy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from lowregret.errors import SpecError
from lowregret.planner.recommend import assumed_shape, recommend
from lowregret.planner.resolve import resolve
from lowregret.planner.validate import validate_spec
from lowregret.specs import (
    AdapterSpec,
    DataFacts,
    DataSpec,
    DeviceFacts,
    FullSpec,
    ModelSpec,
    OptimSpec,
    PolicyGradientSpec,
    RewardSpec,
    RLSpec,
    RunSpec,
    SamplingSpec,
    SlotSpec,
    TrainSpec,
)

CPU = DeviceFacts(kind="cpu", memory_bytes=64 << 30, bf16_fast=True, threads=2)
SHAPE = replace(assumed_shape(512, 4), source="config.json", max_length=512)
EXACT = RewardSpec(source="exact")
FACTS = DataFacts(num_examples=1000, num_tokens=50_000, num_completion_tokens=1000 * 16 * 256, longest=400)
"""Prompts of 50 tokens, the longest 144, and 256 new tokens."""


def spec_of(rl: RLSpec | None, *, task: str = "rl", full: bool = False, train: TrainSpec | None = None) -> RunSpec:
    weights = FullSpec() if full else AdapterSpec(rank=1)
    slot = SlotSpec(name="slot", weights=weights, optim=OptimSpec())
    return RunSpec(
        task=task,
        model=ModelSpec(source="m"),
        data=DataSpec(source="d"),
        slots=(slot,),
        rl=rl,
        train=train or TrainSpec(),
    )


def rl_of(*, sampling: SamplingSpec | None = None, objective: PolicyGradientSpec | None = None, **given: Any) -> RLSpec:
    return RLSpec(
        **{"rewards": (EXACT,), **given},
        sampling=sampling or SamplingSpec(),
        objective=objective or PolicyGradientSpec(),
    )


def test_the_defaults_are_sound():
    validate_spec(spec_of(rl_of()))
    assert resolve(spec_of(rl_of()), shape=SHAPE, facts=FACTS, hardware=CPU).steps == 125


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (spec_of(None), r"rl: is missing, and the task is 'rl'"),
        (spec_of(rl_of(), task="sft"), r"rl: is set, and the task is 'sft'"),
        (spec_of(rl_of(group=1)), r"rl\.group: in a group of 1 the reward is its own mean"),
        (spec_of(rl_of(updates_per_batch=0)), r"rl\.updates_per_batch: 0 must be at least 1"),
        (spec_of(rl_of(updates_per_batch=9)), r"rl\.updates_per_batch: 9 updates can't share 8 prompts a step"),
        (spec_of(rl_of(dynamic=-1)), r"rl\.dynamic: -1 must be at least 0"),
        (spec_of(rl_of(eval_samples=-1)), r"rl\.eval_samples: -1 must be at least 0"),
        (spec_of(rl_of(judge_by="sampled")), r"rl\.judge_by: 'sampled' needs drawn answers"),
        (
            spec_of(rl_of(rewards=(replace(EXACT, weight=math.nan),))),
            r"rl\.rewards\.0\.weight: nan is no finite",
        ),
        (spec_of(rl_of(rewards=(replace(EXACT, weight=0.0),))), r"rl\.rewards: no weight is above 0"),
        (spec_of(rl_of(rewards=(replace(EXACT, timeout=0.0),))), r"rl\.rewards\.0\.timeout: 0\.0 must be a positive"),
        (spec_of(rl_of(sampling=SamplingSpec(temperature=0.0))), r"rl\.sampling\.temperature: 0\.0 must be a positive"),
        (spec_of(rl_of(sampling=SamplingSpec(temperature=math.nan))), r"temperature: nan must be a positive"),
        (spec_of(rl_of(sampling=SamplingSpec(top_p=0.0))), r"rl\.sampling\.top_p: 0\.0 must lie in \(0, 1\]"),
        (spec_of(rl_of(sampling=SamplingSpec(top_p=1.1))), r"rl\.sampling\.top_p: 1\.1 must lie"),
        (spec_of(rl_of(sampling=SamplingSpec(top_k=0))), r"rl\.sampling\.top_k: 0 must be at least 1"),
        (spec_of(rl_of(sampling=SamplingSpec(max_new_tokens=0))), r"max_new_tokens: 0 must be at least 1"),
        (spec_of(rl_of(sampling=SamplingSpec(rows=0))), r"rl\.sampling\.rows: 0 must be at least 1"),
        (spec_of(rl_of(sampling=SamplingSpec(stop=("",)))), r"rl\.sampling\.stop: an empty string"),
        (spec_of(rl_of(sampling=SamplingSpec(engine="vllm", top_p=0.9))), r"engine: vLLM's log-probabilities"),
        (spec_of(rl_of(sampling=SamplingSpec(engine="vllm")), full=True), r"engine: 'vllm' is handed adapters"),
        (spec_of(rl_of(objective=PolicyGradientSpec(clip_low=-0.1))), r"clip_low: -0\.1 must be a positive"),
        (
            spec_of(rl_of(objective=PolicyGradientSpec(truncate=2.0, clip_high=0.2))),
            r"rl\.objective\.truncate: stands beside clipping",
        ),
        (spec_of(rl_of(objective=PolicyGradientSpec(kl=-1.0))), r"rl\.objective\.kl: -1\.0 must be 0 or more"),
        (spec_of(rl_of(objective=PolicyGradientSpec(kl=0.1)), full=True), r"kl: full fine-tuning keeps no base"),
        (
            spec_of(rl_of(objective=PolicyGradientSpec(kl=0.1, ratio="sequence"))),
            r"rl\.objective\.kl: is charged token by token",
        ),
        (spec_of(rl_of(), train=TrainSpec(drop_dominated=1.5)), r"train\.drop_dominated: is for supervised training"),
        (spec_of(rl_of(), train=TrainSpec(dynamics=True)), r"train\.dynamics: is for supervised training"),
        (spec_of(rl_of(), train=TrainSpec(fidelity_at=(1,))), r"train\.fidelity_at: is for supervised training"),
        (spec_of(rl_of(), train=TrainSpec(also_eval=("x",))), r"train\.also_eval: is for supervised training"),
    ],
)
def test_bad_specs_are_one_line_with_field_and_remedy(spec: RunSpec, message: str):
    with pytest.raises(SpecError, match=message) as error:
        validate_spec(spec)
    assert "\n" not in str(error.value)
    assert ";" in str(error.value)


def test_a_prompt_and_a_completion_beyond_the_base_s_context_are_refused_by_both_lengths():
    with pytest.raises(SpecError, match="256 after the longest prompt of 344 tokens is more than the 512 positions"):
        resolve(spec_of(rl_of()), shape=SHAPE, facts=replace(FACTS, longest=600), hardware=CPU)


def test_a_micro_batch_is_at_most_a_step_of_whole_groups():
    small = spec_of(rl_of(group=2, sampling=SamplingSpec(max_new_tokens=10)), train=TrainSpec(batch_size=3))
    plan = resolve(small, shape=SHAPE, facts=replace(FACTS, longest=20), hardware=CPU)
    assert plan.tokens_per_microbatch == 3 * 2 * (50 + 10)


def test_bits_count_every_completion_of_the_group():
    plan = resolve(spec_of(rl_of(group=4), train=TrainSpec(steps=50)), shape=SHAPE, facts=FACTS, hardware=CPU)
    assert plan.information is not None
    assert (plan.information.units, plan.information.bits) == (50 * 8 * 4, 50 * 8 * 4)


def test_a_plan_from_a_number_of_tokens_knows_rl_too():
    plan = recommend(model="m", tokens=100_000, shape=SHAPE, task="rl", steps=50)
    assert plan.spec.rl is not None
    assert plan.information is not None
    assert plan.information.units == 50 * 8 * plan.spec.rl.group
