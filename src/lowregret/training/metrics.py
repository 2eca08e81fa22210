"""Speed and time left of a run: what the progress display and the summary show."""

from __future__ import annotations

import time
from collections import deque

WINDOW = 20
"""Steps over which speed is averaged: the first ones are slower and would spoil a total."""


class Meter:
    """Counts tokens and seconds of steps and evaluations."""

    def __init__(self, steps: int, evaluations: frozenset[int]) -> None:
        self._steps = steps
        self._evaluations = evaluations
        self._recent: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._evaluation_seconds = 0.0
        self.tokens = 0
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start of this process's part of the run."""
        return time.monotonic() - self.started

    def add_step(self, tokens: int, seconds: float) -> None:
        """A step of all lanes is done."""
        self.tokens += tokens
        self._recent.append((tokens, seconds))

    def add_evaluation(self, seconds: float) -> None:
        """An evaluation of all slots is done."""
        self._evaluation_seconds = seconds

    @property
    def step_seconds(self) -> float:
        """Of the latest step, evaluation and checkpoint left out."""
        return self._recent[-1][1]

    @property
    def tokens_per_second(self) -> float:
        """Real tokens of all slots a second of training."""
        return sum(tokens for tokens, _ in self._recent) / max(1e-9, sum(seconds for _, seconds in self._recent))

    def seconds_left(self, step: int) -> float:
        """Remaining steps and evaluations at the pace of the recent ones."""
        pace = sum(seconds for _, seconds in self._recent) / max(1, len(self._recent))
        evaluations = sum(1 for due in self._evaluations if due > step)
        return (self._steps - step) * pace + evaluations * self._evaluation_seconds
