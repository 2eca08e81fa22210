"""How many bits the data of a run brings: by a rule of thumb, by measurement, or by its rewards (science.md 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowregret.errors import SpecError
from lowregret.planner.capacity import BITS_PER_TOKEN, COMPLETION_TOKENS, Capacity, judge, rl_bits
from lowregret.specs.data import DataFacts
from lowregret.specs.plan import Information
from lowregret.specs.run import RunSpec
from lowregret.specs.shape import MatrixShape


def completion_information(spec: RunSpec, facts: DataFacts) -> Information:
    """Supervised data at 1 bit a completion token that the run sees for the first time: the rule of thumb."""
    return Information(
        units=tokens_seen_once(spec, facts),
        unit=COMPLETION_TOKENS,
        bits_per_unit=BITS_PER_TOKEN,
        reason="1 bit a completion token, the rule of thumb for the first epoch's loss; --measure asks the base model",
    )


def measured_information(
    spec: RunSpec, facts: DataFacts, *, nll: float, low: float, high: float, num_examples: int
) -> Information:
    """Supervised data at the loss that the base model itself has on it.

    Args:
        nll: nats a completion token of the base, on a sample of the training split.
        low: lower end of its 95 % interval.
        high: upper end.
        num_examples: of the sample.
    """
    bits = 1 / math.log(2)
    return Information(
        units=tokens_seen_once(spec, facts),
        unit=COMPLETION_TOKENS,
        bits_per_unit=nll * bits,
        interval=(low * bits, high * bits),
        reason=f"the base model's own loss on {num_examples} training examples",
    )


def known_information(spec: RunSpec, facts: DataFacts, *, bits: float, unit: str) -> Information:
    """Generated data whose information content is known exactly.

    Args:
        bits: of all training examples.
        unit: what an example is called.
    """
    seen = _share_seen(spec, facts)
    return Information(
        units=round(facts.num_examples * seen),
        unit=unit,
        bits_per_unit=bits / max(1, facts.num_examples),
        reason="known exactly: the values are drawn uniformly and independently",
    )


def reward_information(
    spec: RunSpec, facts: DataFacts, *, reward_bins: int = 2, pass_rate: float | None = None
) -> Information:
    """What policy gradient can learn from its rewards: at most log2(bins) a sample, H2(pass rate) for 0/1 rewards.

    Args:
        spec: `train.batch_size` counts prompts a step, `rl.group` completions of each.
        facts: counts of the prompts.
        reward_bins: distinct rewards.
        pass_rate: share of right answers of the base, where it is known.

    Raises:
        SpecError: a number is out of range, or a pass rate is given for rewards that are not 0/1.
    """
    if reward_bins < 2:
        raise SpecError(f"reward_bins: {reward_bins} distinct rewards tell nothing apart; give at least 2")
    if pass_rate is not None and not 0 <= pass_rate <= 1:
        raise SpecError(f"pass_rate: {pass_rate} is no share; give a number from 0 to 1")
    if pass_rate is not None and reward_bins != 2:
        raise SpecError("pass_rate: goes with 0/1 rewards; leave --reward-bins out")
    steps = spec.train.steps or max(1, math.ceil(facts.num_examples * spec.train.epochs / spec.train.batch_size))
    assert spec.rl is not None
    group = spec.rl.group
    known = None if pass_rate is None else [pass_rate]
    reason = f"log2 of {reward_bins} distinct rewards" if known is None else f"entropy of a pass rate of {pass_rate:g}"
    return Information(
        units=steps * spec.train.batch_size * group,
        unit="scored samples",
        bits_per_unit=rl_bits(1, reward_bins=reward_bins, pass_rates=known),
        reason=f"{reason}; {steps:,} steps x {spec.train.batch_size} prompts x {group} completions",
    )


def judge_information(matrices: Sequence[MatrixShape], rank: int, information: Information) -> Capacity:
    """Does this rank hold that information?"""
    return judge(
        matrices,
        rank=rank,
        tokens=information.units,
        bits_per_token=information.bits_per_unit,
        bits_per_parameter=information.bits_per_parameter,
        unit=information.unit,
    )


def information_of(spec: RunSpec, facts: DataFacts) -> Information:
    """The estimate that needs nothing but counts."""
    return reward_information(spec, facts) if spec.task == "rl" else completion_information(spec, facts)


def tokens_seen_once(spec: RunSpec, facts: DataFacts) -> int:
    """Completion tokens that a run sees for the first time: repeats bring no new bits."""
    return round(facts.num_completion_tokens * _share_seen(spec, facts))


def _share_seen(spec: RunSpec, facts: DataFacts) -> float:
    steps = spec.train.steps
    if steps is None:
        return min(1.0, spec.train.epochs)
    return min(1.0, steps * spec.train.batch_size / max(1, facts.num_examples))
