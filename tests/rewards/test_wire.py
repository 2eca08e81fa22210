"""What goes through a worker's pipe comes out equal, and what is no outcome is refused."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from lowregret.rewards.wire import Job, Outcome, jobs_message, jobs_of, outcome_message, outcome_of, packed, unpacked
from lowregret.specs import Problem

ENTRIES: tuple[dict[str, Any], ...] = (
    {},
    {"item": {"answer": "4", "metadata": {"grid": ((1, 2), (3, 4)), "by": {1: "a", (2, 3): [None, True]}}}},
    {"odd": "\ud800 \0 \\ \u2028", "large": 10**300, "small": 5e-324, "none": None},
    {"\0tuple of": [1], "nested": [({"a": (1,)},)], "picture": b"\x89PNG\0"},
)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("completion", [None, "", "a\ud800\0\n"])
def test_a_problem_comes_out_equal(entry: dict[str, Any], completion: str | None) -> None:
    problem = Problem(question="q\ud800", answer="\\boxed{4}", entry=entry)
    assert unpacked(packed(problem, completion)) == (problem, completion)


def test_dates_come_as_their_text() -> None:
    problem, _ = unpacked(packed(Problem(question="", answer="", entry={"day": date(2026, 11, 25)}), None))
    assert problem.entry == {"day": "2026-11-25"}


def test_what_is_no_value_is_refused() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        packed(Problem(question="", answer="", entry={"function": print}), None)


def test_a_row_that_holds_itself_is_refused() -> None:
    entry: dict[str, Any] = {}
    entry["self"] = entry
    with pytest.raises((ValueError, RecursionError)):
        packed(Problem(question="", answer="", entry=entry), None)


def test_jobs_and_outcomes_come_out_equal() -> None:
    jobs = [Job(0, "[1]"), Job(2, "\ud800")]
    assert jobs_of(jobs_message(jobs)) == jobs
    outcome = Outcome(0.5, "error", "a reason \ud800")
    assert outcome_of(outcome_message(outcome, goes_on=False)) == (outcome, False)


NO_OUTCOMES = (b"", b"x", b"7", b"[1]", b'[1, "no such failure", "", true]', b'[[], "", "", true]')


@pytest.mark.parametrize("message", NO_OUTCOMES)
def test_what_is_no_outcome_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of JSON and of ours alike
        outcome_of(message)
