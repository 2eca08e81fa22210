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


Row: TypeAlias = "MetricRow | EvalRow | DynamicsRow | SampleRow"
RowType = TypeVar("RowType", MetricRow, EvalRow, DynamicsRow, SampleRow)


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
