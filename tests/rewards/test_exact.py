"""Reasoning tags, boxes, and equality as text, on GSM8K's form and on any other."""

from __future__ import annotations

import pytest

from lowregret.rewards.answers import after_mark, last_boxes, without_reasoning
from lowregret.rewards.exact import Exact
from lowregret.specs import Problem

EGGS = "She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs and makes 9 * 2 = $<<9*2=18>>18.\n#### 18"
HOUSE = "The profit is 200,000 - 130,000 = $<<200000-130000=70000>>70,000\n#### 70,000"
COLD = "It falls to 2 - 7 = -5 degrees.\n#### -5"


@pytest.mark.parametrize(
    ("gold", "completion", "value"),
    [
        (EGGS, "9 eggs at $2 make 18.\n#### 18", 1),
        (EGGS, "#### 17\nNo, that is wrong.\n#### 18\nQuestion: what is 3 + 4?", 1),
        (EGGS, "#### 18\nIn the end\n#### 17", 0),
        (EGGS, "She makes $18.", 1),
        (EGGS, "She makes $18 every day, which is 2 a egg.", 0),
        (EGGS, "#### $18.", 1),
        (EGGS, "#### 18 dollars", 0),
        (EGGS, "####", 0),
        (EGGS, "nothing", 0),
        (EGGS, "", 0),
        (EGGS, "1,18", 1),
        (HOUSE, "#### 70000", 1),
        (HOUSE, "#### 70,000", 1),
        (HOUSE, "a profit of $70,000.", 1),
        (HOUSE, "between 60,000 and 7,0000", 0),
        (COLD, "#### -5", 1),
        (COLD, "it is -5 degrees", 1),
        (COLD, "7-5", 0),
        (COLD, "#### 5", 0),
        ("blue whale", "  blue\n\twhale ", 1),
        ("blue  whale", "blue whale", 1),
        ("blue whale", "Blue whale", 0),
        ("blue whale", "a blue whale", 0),
        ("1,234", "1234", 0),
        ("3", "<think>2, no 3</think>\n3", 1),
        ("3", "2, no 3</think>3", 1),
        ("3", "<think>2, no 3", 0),
        (EGGS, "<think>#### 18", 0),
        (EGGS, "<think>#### 17</think>#### 18", 1),
        (EGGS, "#### 18 <think>or 17?</think>", 1),
        ("", "", 0),
        ("####", "####", 0),
    ],
)
def test_equal_as_text(gold: str, completion: str, value: float) -> None:
    assert Exact().score(Problem(question="", answer=gold), completion) == value


def test_usable_is_a_gold_answer_that_says_something() -> None:
    usable = [Exact().usable(Problem(question="", answer=gold)) for gold in (EGGS, "x", "", " \n", "sum ####  ")]
    assert usable == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("completion", "left"),
    [
        ("plain", "plain"),
        ("a<think>b</think>c<think>d</think>e", "ace"),
        ("lost</think>a<think>b</think>c", "ac"),
        ("<think>a<think>b</think>c</think>d", "d"),
        ("<think>a</think>b<think>c", None),
        ("<think></think>", ""),
    ],
)
def test_reasoning_is_left_out(completion: str, left: str | None) -> None:
    assert without_reasoning(completion) == left


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"$\boxed{1}$ and $\boxed{2}$", ["1", "2"]),
        (r"\boxed{1}, \boxed{2}, or \boxed{3}", ["1", "2", "3"]),
        (r"\boxed{\boxed{4}}", ["4"]),
        (r"\fbox{5}", ["5"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{28}\%", [r"28\%"]),
        (r"$\boxed{28}$ percent", [r"28\%"]),
        (r"\boxed{6} and again \boxed{6", ["6"]),
        (r"\boxed{", []),
        (r"\boxed{" * 100_000, []),
        (r"\boxed{" + "1" * 3000 + "}", []),
        ("{" * 100_000, []),
        ("no box", []),
    ],
)
def test_last_boxes(text: str, boxes: list[str]) -> None:
    assert last_boxes(text) == boxes


def test_the_line_after_the_last_mark() -> None:
    assert [after_mark(text) for text in ("#### 1 #### 2", "####\n3\n4", "5", "#### ")] == ["2", "3", None, ""]


@pytest.mark.parametrize("text", ["9" * 10**7, "9," * 5 * 10**6, "<think></think>" * 10**6, "####\n" * 10**6])
def test_long_answers_take_no_time(text: str) -> None:
    assert Exact().score(Problem(question="", answer="#### 3"), text) == 0
