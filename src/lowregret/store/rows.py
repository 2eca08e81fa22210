"""The lines of a run's logs as frozen dataclasses, and their JSON.

Guarantees: a row reads back equal, NaN and infinities included. JSON has none of these, so they stand as the
strings "NaN", "Infinity" and "-Infinity", which `float` of Python reads as well.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_type_hints


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One slot at one optimizer step.

    >>> row = MetricRow(step=1, slot="r8", loss=1.25, tokens=320, lr=2e-4, seconds=0.8)
    >>> row.untimed().seconds is None
    True
    """

    step: int
    """Steps done, from 1."""
    slot: str
    loss: float
    """Training loss before the step, nats per completion token."""
    tokens: int
    """Real tokens of the slot in this step, prompts included."""
    lr: float
    """Learning rate of A at this step, after the schedule."""
    completion_tokens: int | None = None
    """Tokens of the slot that carried loss in this step."""
    grad_norm: float | None = None
    """Norm of the slot's gradient before any clipping."""
    seconds: float | None = None
    """Wall time of the step, shared by its slots. Timing: two equal runs differ in it."""

    def untimed(self) -> MetricRow:
        """The row without its timing, for comparing two runs."""
        return dataclasses.replace(self, seconds=None)


@dataclass(frozen=True, kw_only=True)
class EvalRow:
    """Held-out negative log-likelihood of one slot on one split.

    >>> EvalRow(step=0, slot="base", split="test", nll=math.log(2), tokens=512).bits
    1.0
    """

    step: int
    """Steps done when it was measured; 0 is before training."""
    slot: str
    """Name of the slot, or `base` for the model without any adapter."""
    split: str
    """`validation` (to choose by), `test` (to report), or the name of a further data set."""
    nll: float
    """Nats per completion token."""
    bits: float = field(init=False)
    """Bits per completion token: nll / ln 2, derived."""
    tokens: int
    """Completion tokens it is the mean of."""
    seconds: float | None = None
    """Wall time of the evaluation. Timing: two equal runs differ in it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", self.nll / math.log(2))

    def untimed(self) -> EvalRow:
        """The row without its timing, for comparing two runs."""
        return dataclasses.replace(self, seconds=None)


@dataclass(frozen=True, kw_only=True)
class DynamicsRow:
    """How far an adapter's two factors have grown, and how its kernel stood to full fine-tuning's before training.

    >>> DynamicsRow(step=8, slot="r4", norm_a=0.8, norm_b=0.2).kernel_alignment is None
    True
    """

    step: int
    slot: str
    norm_a: float
    """Spectral norm of A, geometric mean over the adapted matrices."""
    norm_b: float
    """Spectral norm of B, likewise; 0 before training."""
    kernel_alignment: float | None = None
    """Cosine of the adapter's tangent kernel with its expectation over A (`training/dynamics.py`); at step 0 only."""
    kernel_error: float | None = None
    """Relative Frobenius norm of their difference; at step 0 only."""


@dataclass(frozen=True, kw_only=True)
class FidelityRow:
    """How much of a slot's update one bf16 arithmetic lets act (science.md, "Forward fidelity").

    >>> FidelityRow(step=1, slot="r16", arithmetic="add", fidelity=0.44, low=0.4, high=0.48, fp32_drop=0.1, drop=0.044,
    ...     sequences=64).moved is None
    True
    """

    step: int
    slot: str
    arithmetic: str
    """Of an adapter `accumulator`, `add`, `addmm`, `merged nearest` or `merged stochastic`; of full weights
    `copy nearest` or `copy stochastic`."""
    fidelity: float
    """Loss drop in the arithmetic over the drop in fp32, same masters, same held-out sequences."""
    low: float
    """Lower end of the 95 % interval, by paired bootstrap over sequences."""
    high: float
    fp32_drop: float
    """Nats a completion token; the scale of the whole question."""
    drop: float
    """The same in the arithmetic."""
    sequences: int
    """Held-out ones."""
    moved: float | None = None
    """Share of the bf16 weights that differ from the start's; None where no weight is rewritten."""


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One answer to one test prompt, for the reader.

    >>> SampleRow(when="before", slot="base", prompt="2 + 2 =", reference="4", answer="5").when
    'before'
    """

    when: Literal["before", "after"]
    """Before or after training."""
    slot: str
    """Name of the slot, or `base`."""
    prompt: str
    reference: str
    """The data set's own answer."""
    answer: str
    """What the model said."""


@dataclass(frozen=True, kw_only=True)
class PolicyRow:
    """One slot at one step of RL: what it sampled, and what the update did with it.

    >>> row = PolicyRow(step=1, slot="r1", reward=0.4, pass_rate=0.4, objective=0.0, lr=1e-3, completions=512,
    ...     mean_length=1.0, truncated=0.0, entropy=1.1, without_signal=3, groups=64, bits=80.0, seconds=0.8)
    >>> row.untimed().seconds is None
    True
    """

    step: int
    """Batches of rollouts done, from 1."""
    slot: str
    reward: float
    """Mean over the completions."""
    pass_rate: float
    """Share of completions with the full reward."""
    objective: float
    """Normalised sum over tokens of ratio * advantage, before the update (of the last of several)."""
    lr: float
    """Learning rate of A at this step, after the schedule."""
    completions: int
    """Completions sampled, those of replaced groups included."""
    mean_length: float
    """Tokens of a completion, its end token included."""
    truncated: float
    """Share of completions that were cut off at the longest length."""
    entropy: float
    """Mean of -log p_sampler of the sampled tokens, nats: an unbiased estimate of the entropy a token."""
    without_signal: int
    """Groups whose rewards are all equal, of those that the update saw."""
    groups: int
    """Groups that the update saw."""
    bits: float
    """Upper bound on what this step's rewards tell: sum over groups of size * entropy of the rewards, bits."""
    resampled: int = 0
    """Groups without signal that were replaced by others."""
    failures: int = 0
    """Answers whose scorer failed; they count as reward 0."""
    grad_norm: float | None = None
    """Norm of the slot's gradient before any clipping (of the last of several updates)."""
    ratio_mean: float | None = None
    """Mean of p_learner / p_sampler over the tokens with gradient, before the last update."""
    ratio_max: float | None = None
    clipped: float | None = None
    """Share of these tokens that PPO's clip left without gradient."""
    kl: float | None = None
    """Mean of log p - log p_base over the sampled tokens, nats; where it was computed."""
    tokens: int = 0
    """Tokens sampled and tokens trained on, prompts included; what is computed once counts once."""
    seconds: float | None = None
    """Wall time of the step, shared by its slots. Timing: two equal runs differ in it."""

    def untimed(self) -> PolicyRow:
        """The row without its timing, for comparing two runs."""
        return dataclasses.replace(self, seconds=None)


@dataclass(frozen=True, kw_only=True)
class AccuracyRow:
    """Held-out accuracy of one slot on one split.

    >>> AccuracyRow(step=0, slot="base", split="test", how="greedy", accuracy=0.4, reward=0.4, problems=1000,
    ...     mean_length=1.0, truncated=0.0).accuracy
    0.4
    """

    step: int
    """Steps done when it was measured; 0 is before training."""
    slot: str
    """Name of the slot, or `base`."""
    split: str
    """`validation` (to choose by) or `test` (to report)."""
    how: Literal["greedy", "sampled"]
    """The most likely tokens, or drawn as in training."""
    accuracy: float
    """Share of completions with the full reward."""
    reward: float
    """Mean reward."""
    problems: int
    mean_length: float
    """Tokens of a completion."""
    truncated: float
    """Share cut off at the longest length."""
    failures: int = 0
    """Answers whose scorer failed."""
    kl: float | None = None
    """Mean of log p - log p_base over the tokens of sampled completions, nats; where it was computed."""


@dataclass(frozen=True, kw_only=True)
class RolloutRow:
    """One completion, for the reader.

    >>> RolloutRow(step=0, slot="base", problem=3, prompt="2 + 2 =", answer="4", completion="5", reward=0.0,
    ...     tokens=1, stopped=True).reward
    0.0
    """

    step: int
    slot: str
    problem: int
    """Index in the test split."""
    prompt: str
    answer: str
    """The data's own."""
    completion: str
    reward: float
    tokens: int
    stopped: bool
    """It ended by itself."""
    failure: str = ""


Row: TypeAlias = "MetricRow | EvalRow | DynamicsRow | FidelityRow | SampleRow | PolicyRow | AccuracyRow | RolloutRow"
RowType = TypeVar(
    "RowType", MetricRow, EvalRow, DynamicsRow, FidelityRow, SampleRow, PolicyRow, AccuracyRow, RolloutRow
)


def encode_row(row: Row) -> str:
    """One line of JSON, without a newline; fields that are None are left out."""
    fields = {f.name: getattr(row, f.name) for f in dataclasses.fields(cast(Any, row))}
    record = {name: _encode_number(value) for name, value in fields.items() if value is not None}
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def row_decoder(cls: type[RowType]) -> Callable[[str], RowType]:
    """A function from a line to a row. It raises ValueError or TypeError on a line that is not such a row."""
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cast(Any, cls))
    derived = {f.name for f in fields if not f.init}
    required = {f.name for f in fields if f.default is dataclasses.MISSING} - derived
    floats = [name for name, hint in hints.items() if hint in (float, float | None)]

    def decode(line: str) -> RowType:
        record = json.loads(line)
        if not isinstance(record, Mapping):
            raise TypeError("not a JSON object")
        values = dict(cast("Mapping[str, Any]", record))
        if missing := required - values.keys():
            raise ValueError(f"without {', '.join(sorted(missing))}")
        if unknown := values.keys() - hints.keys():
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        for name in derived & values.keys():
            del values[name]
        for name in floats:
            if name in values:
                values[name] = float(values[name])
        return cls(**values)

    return decode


def _encode_number(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
