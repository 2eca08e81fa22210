"""From the flags of reinforcement learning to an `RLSpec`. Pure, as `specs` is, and under its guarantee: no flag is
ignored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lowregret.cli.flag_groups import PolicyFlags, RolloutFlags
from lowregret.cli.reading import given, items
from lowregret.data.presets import with_preset
from lowregret.specs import RewardSpec, RLSpec, RunSpec

SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "rows")
"""Flags that are fields of `SamplingSpec`."""


def overlay_rl(base: RLSpec, rollouts: RolloutFlags, policy: PolicyFlags) -> RLSpec:
    """The base with every given flag in its place; the rewards' time limit is set by `with_presets`.

    >>> overlay_rl(RLSpec(rewards=()), RolloutFlags(reward="math,exact", rows=8), PolicyFlags(kl=0.1)).rewards[1].source
    'exact'
    """
    flags, objective = given(rollouts), given(policy)
    flags.pop("reward_timeout", None)
    sampling: dict[str, Any] = {name: flags.pop(name) for name in SAMPLING if name in flags}
    if "stop" in flags:
        sampling["stop"] = (flags.pop("stop"),)
    if "sampler" in flags:
        sampling["engine"] = flags.pop("sampler")
    if "reward" in flags:
        sources = items("reward", flags.pop("reward"))
        if sources != tuple(reward.source for reward in base.rewards):
            flags["rewards"] = tuple(RewardSpec(source=source) for source in sources)
    if "updates_per_batch" in objective:
        flags["updates_per_batch"] = objective.pop("updates_per_batch")
    return replace(
        base, sampling=replace(base.sampling, **sampling), objective=replace(base.objective, **objective), **flags
    )


def with_presets(spec: RunSpec, reward_timeout: float | None = None) -> RunSpec:
    """The spec with what the short name of its data stands for, and then the time limit, which is for all rewards."""
    data, rl = with_preset(spec.data, spec.rl) if spec.rl is not None else with_preset(spec.data)
    if rl is not None and reward_timeout is not None:
        rl = replace(rl, rewards=tuple(replace(reward, timeout=reward_timeout) for reward in rl.rewards))
    return replace(spec, data=data, rl=rl)
