"""Which examples, how they become tokens, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A data set and everything that decides its tokens, masks and splits.

    >>> DataSpec(source="facts").overlong
    'drop'
    """

    source: str
    """Hub id, a local JSONL, JSON, CSV or Parquet file, a generated set: `facts`, `reasoning-gym:<task>`, or
    for the micro bases `markov`, `micro-facts`, `max3`, `add31`."""
    config: str | None = None
    """Configuration of a hub data set (`main` for openai/gsm8k)."""
    split: str = "train"
    """Split of a hub data set that is trained on."""
    test_split: str | None = None
    """The data set's own test split. None: `test` where the hub data set has one, else hashed off `split`."""
    test_source: str | None = None
    """A second local file that is the test set. Prompts that also stand in training are dropped there and counted."""
    format: Literal["auto", "messages", "sharegpt", "prompt-completion", "question-answer", "instruction", "text"] = (
        "auto"
    )
    """How a row becomes a conversation. `auto` finds it from the columns."""
    columns: tuple[tuple[str, str], ...] = ()
    """Renames, as (role of the format, column of the data): (("question", "problem"), ("answer", "solution"))."""
    loss_on: Literal["all", "last"] = "all"
    """Assistant turns that carry loss: all of them or the last."""
    max_length: int = 2048
    """Longest example in tokens."""
    overlong: Literal["drop", "truncate"] = "drop"
    """What happens to longer examples; either way they are counted. Dropping is the default because a
    truncated answer teaches an answer without an end."""
    validation_size: int | None = None
    """Examples by which settings are chosen; those that are too long are dropped from them as from all others. None:
    5 % of the examples, at most 512."""
    test_size: int | None = None
    """Examples that are reported on. None: 5 % of the examples, or the data set's own test split; at most 512."""
    limit: int | None = None
    """Use the first N rows only. For a generated set: how many rows to generate."""
    seed: int = 0
    """Seed of generated data and of the split hash."""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the planner needs to know of a data set: counts only, of the training split.

    >>> DataFacts(num_examples=2, num_tokens=20, num_completion_tokens=8, longest=12).mean_length
    10.0
    """

    num_examples: int
    """Training examples after filtering."""
    num_tokens: int
    """Tokens of all training examples, prompts included, one epoch."""
    num_completion_tokens: int
    """Tokens that carry loss, one epoch."""
    longest: int
    """Length of the longest example in tokens."""
    approximate: bool = False
    """True where the counts were given (`--tokens`) or assumed, not counted."""

    @property
    def mean_length(self) -> float:
        return self.num_tokens / max(1, self.num_examples)
