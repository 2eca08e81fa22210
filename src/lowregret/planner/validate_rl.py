"""Is what a run of RL has beyond supervised training sound? Part of `validate`, and under its guarantee."""

from __future__ import annotations

import math

from lowregret.errors import SpecError
from lowregret.planner.ranges import at_least, not_negative, positive
from lowregret.specs.adapter import FullSpec
from lowregret.specs.data import DataFacts
from lowregret.specs.objective import PolicyGradientSpec
from lowregret.specs.reward import RewardSpec
from lowregret.specs.rl import RLSpec
from lowregret.specs.run import RunSpec, TrainSpec
from lowregret.specs.sampling import SamplingSpec
from lowregret.specs.shape import ModelShape


def validate_rl(spec: RunSpec) -> None:
    """Check that the task and its settings go together, and every range of RL that needs neither model nor data.

    Raises:
        SpecError: they don't, or a value is out of range.
    """
    rl = spec.rl
    if rl is None:
        if spec.task == "rl":
            raise SpecError("rl: is missing, and the task is 'rl'; add [rl] with its rewards, or set task to 'sft'")
        return
    if spec.task != "rl":
        raise SpecError(f"rl: is set, and the task is {spec.task!r}; set task to 'rl', or leave rl out")
    _supervised_only(spec.train)
    _rollouts(rl, spec.train)
    _rewards(rl.rewards)
    _sampling(rl.sampling)
    _objective(rl.objective)
    if any(isinstance(slot.weights, FullSpec) for slot in spec.slots):
        if rl.objective.kl > 0:
            raise SpecError(
                "rl.objective.kl: full fine-tuning keeps no base to stay close to; leave --full or --kl out"
            )
        if rl.sampling.engine == "vllm":
            raise SpecError(
                "rl.sampling.engine: 'vllm' is handed adapters, and full weights are none; leave --full out, or take "
                "--sampler own"
            )


def validate_lengths(spec: RunSpec, shape: ModelShape, facts: DataFacts) -> None:
    """Check that the longest prompt and the longest completion are a context that the base takes.

    Raises:
        SpecError: they are longer.
    """
    if spec.rl is None or shape.max_length is None or facts.approximate or facts.longest <= shape.max_length:
        return
    new = spec.rl.sampling.max_new_tokens
    raise SpecError(
        f"rl.sampling.max_new_tokens: {new} after the longest prompt of {facts.longest - new} tokens is more than the "
        f"{shape.max_length} positions of the base; lower --max-new-tokens, or drop long prompts by --max-length "
        f"{shape.max_length}"
    )


def _supervised_only(train: TrainSpec) -> None:
    """Settings of `train` that are about losses on data."""
    for name, given in (
        ("drop_dominated", train.drop_dominated is not None),
        ("dynamics", train.dynamics),
        ("fidelity_at", bool(train.fidelity_at)),
        ("also_eval", bool(train.also_eval)),
    ):
        if given:
            raise SpecError(f"train.{name}: is for supervised training, and the task is 'rl'; leave it out")


def _rollouts(rl: RLSpec, train: TrainSpec) -> None:
    if rl.group < 2:
        raise SpecError(
            f"rl.group: in a group of {rl.group} the reward is its own mean, so no completion has an advantage; "
            "give at least 2"
        )
    at_least(rl.updates_per_batch, 1, "rl.updates_per_batch", "1 is the default")
    if rl.updates_per_batch > train.batch_size:
        raise SpecError(
            f"rl.updates_per_batch: {rl.updates_per_batch} updates can't share {train.batch_size} prompts a step "
            "(train.batch_size); lower the one or raise the other"
        )
    for name, value in (("dynamic", rl.dynamic), ("eval_samples", rl.eval_samples)):
        at_least(value, 0, f"rl.{name}", "0 is none")
    if rl.judge_by == "sampled" and not rl.eval_samples:
        raise SpecError("rl.judge_by: 'sampled' needs drawn answers to held-out prompts; give --eval-samples")


def _rewards(rewards: tuple[RewardSpec, ...]) -> None:
    for index, reward in enumerate(rewards):
        if not math.isfinite(reward.weight):
            raise SpecError(f"rl.rewards.{index}.weight: {reward.weight} is no finite number; 1 is the default")
        positive(reward.timeout, f"rl.rewards.{index}.timeout", "5 seconds is the default")
    if rewards and not any(reward.weight > 0 for reward in rewards):
        raise SpecError("rl.rewards: no weight is above 0, so that no completion can pass; 1 is the default")


def _sampling(spec: SamplingSpec) -> None:
    field = "rl.sampling"
    positive(spec.temperature, f"{field}.temperature", "at 0 a group's completions are all the same; 1 is the default")
    if not 0.0 < spec.top_p <= 1.0:
        raise SpecError(f"{field}.top_p: {spec.top_p} must lie in (0, 1]; 1 draws from all tokens")
    if spec.top_k is not None:
        at_least(spec.top_k, 1, f"{field}.top_k", "leave it out to draw from all tokens")
    at_least(spec.max_new_tokens, 1, f"{field}.max_new_tokens", "256 is the default")
    at_least(spec.rows, 1, f"{field}.rows", "64 is the default")
    if spec.engine == "vllm" and (spec.top_p < 1.0 or spec.top_k is not None):
        raise SpecError(
            f"{field}.engine: vLLM's log-probabilities would be of the filtered distribution, the learner's are not; "
            "leave --top-p and --top-k out, or take --sampler own"
        )
    if not all(spec.stop):
        raise SpecError(f"{field}.stop: an empty string would end every completion at once; leave it out")


def _objective(spec: PolicyGradientSpec) -> None:
    field = "rl.objective"
    for name, value in (("clip_low", spec.clip_low), ("clip_high", spec.clip_high), ("truncate", spec.truncate)):
        if value is not None:
            positive(value, f"{field}.{name}", "leave it out to take ratios as they are")
    if spec.truncate is not None and (spec.clip_low is not None or spec.clip_high is not None):
        raise SpecError(f"{field}.truncate: stands beside clipping, which bounds the ratio too; leave one of them out")
    not_negative(spec.kl, f"{field}.kl", "0 is the default")
    if spec.kl > 0 and spec.ratio == "sequence":
        raise SpecError(
            f"{field}.kl: is charged token by token, which needs token ratios; set ratio to 'token' or kl to 0"
        )
