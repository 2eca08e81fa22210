"""reasoning-gym's own scorers, through a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym

from lowregret.rewards.gym import LONGEST
from lowregret.rewards.scorer import Scorer
from lowregret.specs import Problem, RewardSpec


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer([RewardSpec(source="reasoning-gym")], notify=lambda line: None) as scorer:
        yield scorer


def item(task: str, **config: Any) -> dict[str, Any]:
    return reasoning_gym.create_dataset(task, size=3, seed=7, **config)[2]


def problem(task: str, **config: Any) -> Problem:
    return Problem(question="", answer="", entry={"task": task, "item": item(task, **config), "config": config})


@pytest.mark.parametrize("task", ["leg_counting", "countdown", "simple_equations"])
def test_right_and_wrong_answers(scorer: Scorer, task: str) -> None:
    asked = problem(task)
    right = asked.entry["item"]["answer"]
    answers = [
        right,
        f"<think>{right}7, no</think> The answer is <answer>7</answer>, no, <answer>\n{right} </answer>.",
        f"<think>{right}",
        "-12345678",
        "",
        "x" * (LONGEST + 1),
    ]
    values = [score.value for score in scorer.score([(asked, answer) for answer in answers])]
    assert values[:3] == [1, 1, 0]
    assert max(values[3:]) < 0.1


def test_the_tasks_own_partial_scores(scorer: Scorer) -> None:
    """Countdown gives 0.05 for an expression with the wrong result, and does not ask for the one that it has."""
    asked = problem("countdown", min_numbers=2, max_numbers=2)
    swapped = {"metadata": {"numbers": [3, 4], "target": 7}, "answer": "3 + 4", "question": ""}
    asked = Problem(question="", answer="", entry={**asked.entry, "item": swapped})
    assert [score.value for score in scorer.score([(asked, "4 + 3"), (asked, "4 - 3")])] == [1, 0.05]


def test_what_is_usable(scorer: Scorer) -> None:
    whole = dict(problem("leg_counting").entry)
    entries = [whole, {"task": "leg_counting"}, {**whole, "task": "leg_countin"}, {"item": whole["item"]}, {}]
    assert scorer.usable([Problem(question="", answer="4", entry=entry) for entry in entries]) == [True] + [False] * 4


def test_an_entry_without_its_item_is_an_error(scorer: Scorer) -> None:
    (score,) = scorer.score([(Problem(question="", answer="4"), "4")])
    assert (score.value, score.failure) == (0, "error")


def test_answers_that_are_evaluated_write_and_start_nothing(scorer: Scorer, tmp_path: Path) -> None:
    """The scorer of spiral_matrix calls eval on an answer that looks like a list."""
    asked = problem("spiral_matrix")
    harm = [
        f"[open({str(tmp_path / 'open')!r}, 'w')]",
        f"[__import__('os').system('touch {tmp_path / 'system'}')]",
        f"[__import__('subprocess').run(['touch', {str(tmp_path / 'run')!r}])]",
        f"[__import__('os').mkdir({str(tmp_path / 'mkdir')!r})]",
        f"[__import__('pathlib').Path({str(tmp_path / 'path')!r}).write_text('x')]",
        "[__import__('os').kill(__import__('os').getppid(), 9)]",
        "[exit()]",
        "[__import__('os')._exit(0)]",
    ]
    right = asked.entry["item"]["answer"]
    scores = scorer.score([(asked, answer) for answer in [*harm, right]])
    assert list(tmp_path.iterdir()) == []
    assert max(score.value for score in scores[:-1]) < 0.1
    assert scores[-1].value == 1
