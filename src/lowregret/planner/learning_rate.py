"""Which learning rate, with its uncertainty: Thinking Machines' law beside this project's own estimate.

The own estimate is a ridge regression of the best log learning rate on family, width and rank, fitted by
`scripts/fit_learning_rate.py` on Thinking Machines' published sweep (batch 128, 780 steps, linear decay, alpha 32).
What the sweep held fixed is carried over by factors that each say where they come from. The best rate rises with rank
and rank 1 is lower, as the sweep shows and the law does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lowregret.planner import learning_rate_coefficients as fitted

Schedule = Literal["constant", "linear", "cosine"]

LAW_EXPONENTS = {"llama": 0.781, "qwen": 0.0775}
"""Exponent of (2000 / hidden) in Thinking Machines' law, by family."""

SWEEP_STEPS = 780
SWEEP_BATCH = 128
SWEEP_ALPHA = 32.0
SWEEP_RANKS = (1, 128)
SWEEP_WIDTHS = (2048, 8192)

SHORT_RUN_EXPONENT = 0.15
"""Shorter runs want a higher rate, steps^-0.15: 1.36 at 100 steps. The paper's 15x instead of 10x below 100 steps."""
SHORT_RUN_LIMIT = 1.5
"""The paper's 15x / 10x; nothing larger has been measured."""

FULL_RATIO = 9.8
"""Best LoRA rate over best FullFT rate in long supervised runs (paper's fit; 10 in the law)."""
FULL_REFERENCE_RANK = 32
"""FullFT has no rank: its rate is derived from the LoRA rate at this one."""

RL_LORA = 7e-5
"""Middle of the plateau at ranks 1, 16 and 256 on Qwen3-1.7B by final accuracy (60 public RL runs); free of rank."""
RL_RATIO = 4.0
"""LoRA over FullFT in the same runs: 3 to 6, not 10."""
RL_WIDTH = 2048
RL_MODEL_TYPE = "qwen3"

Z90 = 1.645
"""Half-width of a 90 % interval in standard deviations."""


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """A rate, the interval in which the best one lies nine times out of ten, and how it came about.

    >>> LearningRate(value=3e-4, low=1e-4, high=9e-4, reason="", source="", factors={}).value
    0.0003
    """

    value: float
    low: float
    high: float
    reason: str
    source: str
    factors: Mapping[str, float]
    """What the sweep's estimate was multiplied by, by name."""


def family_of(model_type: str) -> str:
    """The group of the sweep that a `model_type` belongs to; `other` where it has none.

    >>> family_of("qwen3_5_moe"), family_of("llama"), family_of("gemma2")
    ('qwen3_5', 'llama', 'other')
    """
    for prefix, family in (
        ("llama", "llama"),
        ("qwen3_5", "qwen3_5"),
        ("qwen", "qwen"),
        ("deepseek", "latent"),
        ("kimi", "latent"),
        ("nemotron", "nemotron"),
        ("gpt_oss", "gpt_oss"),
    ):
        if model_type.startswith(prefix):
            return family
    return "other"


def features(model_type: str, hidden_size: int | None, rank: int) -> dict[str, float]:
    """What the regression sees. An unknown width stands at the reference width.

    >>> sorted(features("llama", 4096, 16))
    ['family:llama', 'intercept', 'rank', 'width', 'width:llama']
    """
    family = family_of(model_type)
    width = 0.0 if hidden_size is None else _log_width(hidden_size)
    values = {"intercept": 1.0, "rank": math.log(rank / 16), "width": width}
    if family != "other":
        values[f"family:{family}"] = 1.0
    if family == "llama":
        values["width:llama"] = width
    return values


def sweep_rate(model_type: str, hidden_size: int | None, rank: int, coefficients: Mapping[str, float]) -> float:
    """The best rate in the sweep's setting, by the regression."""
    values = features(model_type, hidden_size, rank)
    return math.exp(sum(coefficients.get(name, 0.0) * value for name, value in values.items()))


def thinking_machines_law(model_type: str, hidden_size: int, *, lora: bool) -> float | None:
    """5e-5 x 10 for LoRA x (2000 / hidden)^p; None for a family that it has no exponent for.

    >>> thinking_machines_law("llama", 4096, lora=True)
    0.000285...
    """
    exponent = next((p for family, p in LAW_EXPONENTS.items() if model_type.startswith(family)), None)
    if exponent is None:
        return None
    return 5e-5 * (10 if lora else 1) * (2000 / hidden_size) ** exponent


def lora_rate(
    model_type: str,
    hidden_size: int,
    *,
    rank: int,
    steps: int,
    alpha: float = SWEEP_ALPHA,
    schedule: Schedule = "constant",
    batch_size: int = SWEEP_BATCH,
    task: str = "sft",
) -> LearningRate:
    """The LoRA rate for a run.

    Args:
        model_type: of config.json; any name gives an estimate, an unknown one with a wider interval.
        hidden_size: width of the base.
        rank: of the adapter.
        steps: optimizer steps of the run.
        alpha: LoRA alpha.
        schedule: of the run.
        batch_size: sequences a step; the sweep had 128 only, other sizes follow the square-root rule.
        task: `sft` or `rl`.
    """
    if task == "rl":
        return _rl_rate(model_type, hidden_size, alpha=alpha, full=False)
    factors = {
        "run length": run_length_factor(steps),
        "schedule": schedule_factor(schedule),
        "alpha": alpha_factor(alpha, steps),
        "batch size": batch_factor(batch_size),
    }
    base = sweep_rate(model_type, hidden_size, rank, fitted.COEFFICIENTS)
    spread = _spread(model_type, hidden_size, rank, factors)
    reason = (
        f"{base:.2g} for {_family_text(model_type)} of width {hidden_size} at rank {rank} in the sweep's setting "
        f"({SWEEP_STEPS} steps, linear decay, alpha 32, batch {SWEEP_BATCH}){_factor_text(factors)}"
    )
    return _rate(base * math.prod(factors.values()), spread, reason, fitted.SOURCE, factors)


def full_rate(
    model_type: str,
    hidden_size: int,
    *,
    steps: int,
    schedule: Schedule = "constant",
    batch_size: int = SWEEP_BATCH,
    task: str = "sft",
) -> LearningRate:
    """The rate for full fine-tuning: the LoRA rate of a long run over 9.8 (SFT) or 4 (RL); arguments as `lora_rate`."""
    if task == "rl":
        return _rl_rate(model_type, hidden_size, alpha=SWEEP_ALPHA, full=True)
    lora = lora_rate(
        model_type,
        hidden_size,
        rank=FULL_REFERENCE_RANK,
        steps=max(steps, SWEEP_STEPS),
        schedule=schedule,
        batch_size=batch_size,
    )
    spread = math.hypot(math.log(lora.high / lora.value) / Z90, fitted.FULL_RATIO_SD)
    reason = f"{lora.value:.2g} for LoRA at rank {FULL_REFERENCE_RANK} in a long run, over {FULL_RATIO}"
    factors = {**lora.factors, "FullFT": 1 / FULL_RATIO}
    return _rate(lora.value / FULL_RATIO, spread, reason, "LoRA Without Regret, fitted multiplier 9.8", factors)


def run_length_factor(steps: int) -> float:
    """1 from the sweep's length on, rising to 1.5 for short runs.

    >>> run_length_factor(780), run_length_factor(10)
    (1.0, 1.5)
    """
    return min(SHORT_RUN_LIMIT, max(1.0, (SWEEP_STEPS / max(1, steps)) ** SHORT_RUN_EXPONENT))


def schedule_factor(schedule: Schedule) -> float:
    """The sweep decayed linearly; a constant rate spends the whole run at its height and must be lower."""
    return fitted.CONSTANT_OVER_LINEAR if schedule == "constant" else 1.0


def batch_factor(batch_size: int) -> float:
    """The square-root rule of Adam where gradient noise dominates (Malladi et al., 2022), held within 4 to 512.

    Without it SmolLM2-135M at batch 4 got 7e-4 to 1.6e-3 and its loss rose again after two steps (docs/log.md). The
    interval covers no effect at all.

    >>> batch_factor(128), batch_factor(8)
    (1.0, 0.25)
    """
    return math.sqrt(min(512, max(4, batch_size)) / SWEEP_BATCH)


def alpha_factor(alpha: float, steps: int) -> float:
    """Invariance of (alpha, init, rates): the best rate goes as alpha^-1 in short runs, alpha^-1/2 in long ones.

    >>> alpha_factor(32.0, 100), alpha_factor(64.0, 10), alpha_factor(64.0, 100_000)
    (1.0, 0.5, 0.707...)
    """
    low, high = math.log(30), math.log(3000)
    share = min(1.0, max(0.0, (math.log(max(1, steps)) - low) / (high - low)))
    return (alpha / SWEEP_ALPHA) ** (-1 + 0.5 * share)


def _rl_rate(model_type: str, hidden_size: int, *, alpha: float, full: bool) -> LearningRate:
    """Anchored at the one public RL sweep; width and family as in supervised runs."""
    here = sweep_rate(model_type, hidden_size, 16, fitted.COEFFICIENTS)
    there = sweep_rate(RL_MODEL_TYPE, RL_WIDTH, 16, fitted.COEFFICIENTS)
    factors = {"width and family": here / there, "alpha": alpha_factor(alpha, 50)}
    if full:
        factors["FullFT"] = 1 / RL_RATIO
    runs = "60 public runs on Qwen3-1.7B (LoRA / FullFT there 3 to 6)"
    reason = f"{RL_LORA:.2g} at any rank in {runs}{_factor_text(factors)}"
    spread = math.hypot(0.4, 0.0 if model_type == RL_MODEL_TYPE else fitted.FAMILY_SD)
    return _rate(RL_LORA * math.prod(factors.values()), spread, reason, "RL replication, Qwen3-1.7B on MATH", factors)


def _log_width(hidden_size: int) -> float:
    """log(width / 4096). Beyond the sweep's widths only half of the way is followed: no run there supports the rest."""
    inside = min(max(hidden_size, SWEEP_WIDTHS[0]), SWEEP_WIDTHS[1])
    return math.log(inside / 4096) + 0.5 * math.log(hidden_size / inside)


def _spread(model_type: str, hidden_size: int, rank: int, factors: Mapping[str, float]) -> float:
    """Standard deviation of the log rate: the fit's own, and half of every factor that the sweep did not vary."""
    inside = min(max(hidden_size, SWEEP_WIDTHS[0]), SWEEP_WIDTHS[1])
    beyond_rank = math.log(max(1.0, rank / SWEEP_RANKS[1]))
    parts = [
        fitted.LOG_SD,
        fitted.FAMILY_SD if family_of(model_type) == "other" else 0.0,
        0.5 * math.log(hidden_size / inside),
        0.5 * fitted.COEFFICIENTS["rank"] * beyond_rank,
        *(0.5 * math.log(factor) for factor in factors.values()),
    ]
    return math.hypot(*parts)


def _rate(value: float, spread: float, reason: str, source: str, factors: Mapping[str, float]) -> LearningRate:
    reach = math.exp(Z90 * spread)
    return LearningRate(
        value=value, low=value / reach, high=value * reach, reason=reason, source=source, factors=dict(factors)
    )


def _family_text(model_type: str) -> str:
    known = family_of(model_type) != "other"
    return f"{model_type!r}" if known else f"{model_type!r} (not in the sweep: the mean of all families)"


def _factor_text(factors: Mapping[str, float]) -> str:
    said = [f", x {factor:.2f} for {name}" for name, factor in factors.items() if factor != 1.0]
    return "".join(said)
