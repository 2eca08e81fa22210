"""What is asked in RL, and how an answer is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Failure = Literal["", "error", "timeout", "crash"]
"""Why an answer has no score of its own: the scorer raised or gave no finite number, ran too long, or died."""


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """One scorer, and its share of the reward.

    >>> RewardSpec(source="math").weight
    1.0
    """

    source: str
    """`math` (equal as mathematics), `exact` (equal as text; after `####` where that stands), `reasoning-gym` (the
    task's own scorer), or `path/to/file.py:function`."""
    weight: float = 1.0
    """Factor of this scorer in the sum over all."""
    timeout: float = 5.0
    """Processor seconds that one answer may take; after that it counts as failed, with reward 0. By the clock it may
    take four times as long, so that a busy machine does not turn right answers into wrong ones."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One prompt with what is needed to score an answer to it.

    >>> Problem(question="2 + 2?", answer="4").answer
    '4'
    """

    question: str
    """The prompt as the user's data has it, before any template."""
    answer: str
    """The data's own answer, whole (a solution that ends in `#### 4` or a boxed result is left as it is)."""
    entry: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The row that it was made of; for reasoning-gym what the task's scorer wants."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What an answer earned.

    >>> Score(value=1.0).failure
    ''
    """

    value: float
    """Weighted sum over the scorers; a scorer that failed counts 0."""
    failure: Failure = ""
    """Of the first scorer that failed."""
