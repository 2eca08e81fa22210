"""Scores of many answers by one or several scorers: the one door of this room.

However a scorer behaves, every answer gets a score in bounded time; see `pool` for the bound and `worker` for the
limits. Scorers never run in this process, with one exception that can't hang (`exact`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from lowregret.errors import SpecError
from lowregret.rewards.exact import Exact
from lowregret.rewards.pool import Pool
from lowregret.rewards.sources import Source, source_of
from lowregret.rewards.wire import Job, Outcome, packed
from lowregret.specs import Problem, RewardSpec, Score

MOST_NOTES = 10
"""Different failures that are told; after a few, more of them say nothing new."""


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")


class Scorer:
    """Scorers with their workers; a context manager, since the workers live as long as it is open.

    >>> with Scorer([RewardSpec(source="exact")]) as scorer:
    ...     scorer.score([(Problem(question="2 + 2?", answer="4"), " 4\\n")])
    [Score(value=1.0, failure='')]
    """

    def __init__(
        self, specs: Sequence[RewardSpec], workers: int = 1, notify: Callable[[str], None] = _to_stderr
    ) -> None:
        """
        Args:
            notify: told of each new kind of failure, in one line.

        Raises:
            SpecError: an unknown source, a file that isn't there, a package that is missing, a limit out of range.
        """
        _check(specs, workers)
        self._specs, self._notify = tuple(specs), notify
        self._sources = [source_of(spec.source) for spec in specs]
        self._told: set[tuple[str, str]] = set()
        remote = {k: source for k, source in enumerate(self._sources) if not isinstance(source, Exact)}
        for source in remote.values():
            source.check()
        self._place = {k: place for place, k in enumerate(remote)}
        timeouts = [specs[k].timeout for k in remote]
        self._pool = Pool(list(remote.values()), timeouts, workers) if remote else None

    def __enter__(self) -> Self:
        """Start the workers and load the scorers.

        Raises:
            SpecError: a file of rewards can't be run or has no such function.
        """
        if self._pool is not None:
            self._pool.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.close()

    def score(self, answers: Sequence[tuple[Problem, str]]) -> list[Score]:
        """One score an answer, in order: the weighted sum over the scorers, of which a failed one counts 0."""
        columns = self._ask(answers)
        scores: list[Score] = []
        for row in zip(*columns, strict=True):
            value = sum(spec.weight * outcome.value for spec, outcome in zip(self._specs, row, strict=True))
            scores.append(Score(value=value, failure=next((o.failure for o in row if o.failure), "")))
        self._tell(columns)
        return scores

    def usable(self, problems: Iterable[Problem]) -> list[bool]:
        """Whether each problem can be scored: its gold answer has a meaning to all scorers. A gold answer that makes a
        scorer fail is not usable. For the data's side, which leaves such problems out and counts them."""
        columns = self._ask([(problem, None) for problem in problems])
        return [all(outcome.value > 0 for outcome in row) for row in zip(*columns, strict=True)]

    def _ask(self, answers: Sequence[tuple[Problem, str | None]]) -> list[list[Outcome]]:
        """For each scorer what it says of each answer (or of the problem alone, where the answer is None)."""
        columns: list[list[Outcome]] = []
        jobs: list[Job] = []
        places: list[tuple[int, int]] = []
        for k, source in enumerate(self._sources):
            if isinstance(source, Exact):
                columns.append([_exactly(source, *answer) for answer in answers])
                continue
            column: list[Outcome] = []
            for row, answer in enumerate(answers):
                sent = _packed(source, *answer)
                column.append(sent if isinstance(sent, Outcome) else Outcome(0.0))
                if isinstance(sent, str):
                    jobs.append(Job(self._place[k], sent))
                    places.append((k, row))
            columns.append(column)
        if self._pool is not None:
            for (k, row), outcome in zip(places, self._pool.run(jobs), strict=True):
                columns[k][row] = outcome
        return columns

    def _tell(self, columns: Sequence[Sequence[Outcome]]) -> None:
        for spec, column in zip(self._specs, columns, strict=True):
            for outcome in column:
                note = (spec.source, outcome.reason)
                if outcome.failure and note not in self._told and len(self._told) < MOST_NOTES:
                    self._told.add(note)
                    self._notify(f"reward {spec.source}: {outcome.failure}, counts 0: {outcome.reason}")


def _check(specs: Sequence[RewardSpec], workers: int) -> None:
    if not specs:
        raise SpecError("reward is empty; name at least one, such as 'math'")
    if workers < 1:
        raise SpecError(f"reward workers are {workers}; at least 1 is needed")
    for spec in specs:
        if not math.isfinite(spec.weight):
            raise SpecError(f"reward {spec.source!r}: weight is {spec.weight}; give a finite number")
        if not 0 < spec.timeout < math.inf:
            raise SpecError(f"reward {spec.source!r}: timeout is {spec.timeout}; give seconds above 0")


def _exactly(source: Exact, problem: Problem, completion: str | None) -> Outcome:
    return Outcome(float(source.usable(problem)) if completion is None else source.score(problem, completion))


def _packed(source: Source, problem: Problem, completion: str | None) -> str | Outcome:
    """One answer as text, each by itself: a row that can't be sent must not lose the others their scores."""
    trimmed = source.trim(problem, completion)
    if trimmed is None:
        return Outcome(0.0)
    asked, text = trimmed
    try:
        return packed(asked, None if completion is None else text)
    except (TypeError, ValueError, RecursionError) as error:
        return Outcome(0.0, "error", f"the row can't be sent to a worker: {error}")
