r"""Equal and unequal as mathematics, in the forms that math-verify claims, and strings made to do harm.

Everything goes through workers, as in a run: one process scores all pairs of a test.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from lowregret.rewards.pool import PATIENCE
from lowregret.rewards.scorer import Scorer
from lowregret.rewards.worker import GRACE
from lowregret.specs import Problem, RewardSpec

TIMEOUT = 1.5
"""Seconds for a hostile string; a third of them takes all of it, and it is processor time."""
START = 20.0
"""Allowed for a worker that must be replaced."""

PAIRS = [
    # numbers
    ("1234", "1,234", 1),
    ("1,234.50", "1234.5", 1),
    ("0.4", ".4", 1),
    ("1,22", "1.22", 1),
    ("$18", "It costs 18 dollars.", 1),
    ("18", r"\$18.00", 1),
    ("-5", "5", 0),
    ("1.5e3", r"$1.5 \times 10^3$", 1),
    ("5", "**5**", 1),
    # fractions and roots
    ("10/9", r"\frac{10}{9}", 1),
    (r"$\frac13$", r"$\cfrac{1}{3}$", 1),
    (r"$\frac{1}{3}$", "0.333333", 1),
    (r"$\frac{1}{3}$", "0.33", 0),
    (r"3\frac{1}{2}", "7/2", 1),
    (r"\frac{14}{3}", r"2 + \frac{5}{3} + 1", 1),
    (r"\sqrt{8}", r"\boxed{2\sqrt2}", 1),
    ("2*sqrt(3)", r"\boxed{2\sqrt{3}}", 1),
    # percentages
    (r"28\%", "28 percent", 1),
    (r"28\%", r"The loss is $\boxed{28}$ pct", 1),
    (r"28\%", "28", 1),
    ("0.28", "28", 0),
    # expressions and equations
    ("x^2 + 2x + 1", r"\boxed{(x+1)^2}", 1),
    ("x^2 + 2x + 1", r"\boxed{(x-1)^2}", 0),
    ("2-2p", r"Thus $x-p=\boxed{2-2p}$.", 1),
    ("x = 5", "5", 1),
    ("5", "$x = 5$", 1),
    ("y = 2x + 1", r"\boxed{2x - y = -1}", 1),
    ("3 sin(x)", r"\boxed{3\sin x}", 1),
    ("2 + 3i", r"\boxed{3i + 2}", 1),
    # sets, tuples, intervals, inequalities
    (r"\{1, 2, 3\}", r"\boxed{3, 2, 1}", 1),
    (r"\{1, 2, 3\}", r"\boxed{1, 2}", 0),
    ("12 and 13", r"$\boxed{12}$ and $\boxed{13}$", 1),
    ("(1, 2)", r"\boxed{\left(1, 2\right)}", 1),
    ("(1, 2)", "(2, 1)", 0),
    ("$[0, 1)$", "$[0,1)$", 1),
    ("$[0, 1)$", "$(0,1)$", 0),
    (r"x \le 3", r"\boxed{(-\infty, 3]}", 1),
    (r"x < 3", r"\boxed{3 > x}", 1),
    (r"(-\infty, 3) \cup (5, \infty)", r"$(5, \infty) \cup (-\infty, 3)$", 1),
    # matrices, units, words
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        "\\[\\boxed{\n\\begin{bmatrix} 1 & 2 \\\\ 3 & 4 \\end{bmatrix}\n}\\]",
        1,
    ),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}}", 0),
    (r"5 \text{ cm}", "$5$", 1),
    (r"90^\circ", r"\boxed{90}", 1),
    (r"\text{Evelyn}", r"So $\boxed{\text{Evelyn}}$ is right.", 1),
    (r"\text{Evelyn}", r"\boxed{\text{Carla}}", 0),
    # where the answer stands
    (r"First $\boxed{3}$ is tried, then $x = \boxed{4}$.", "The final answer is $4$. I hope it is correct.", 1),
    ("It is 2 + 2.\n#### 4", "#### 4", 1),
    ("4", r"\boxed{4}. A check: $3 + 3 = 6$.", 1),
    ("4", r"\boxed{3}, \boxed{4}", 0),
    ("4", r"<think>\boxed{3}</think>\boxed{4}", 1),
    ("4", r"<think>\boxed{4}", 0),
    ("4", r"<think>\boxed{4}</think>", 0),
    ("4", "", 0),
    ("4", r"\[ \boxed{3} " * 2000 + r"\boxed{4}", 1),
    ("4", "4 " + "and so on " * 1000, 0),
]

HOSTILE = {
    "10 MB": "1 + " * 2_500_000,
    "10 MB in a box": r"\boxed{" + "1 + " * 2_500_000 + "1}",
    "nested braces": "{" * 100_000 + "}" * 100_000,
    "nested braces in a box": r"\boxed{" + "{" * 900 + "}" * 900 + "}",
    "nested fractions": r"\boxed{" + r"\frac{1}{" * 150 + "2" + "}" * 150 + "}",
    "nested brackets": "(" * 100_000 + "1",
    "exponent tower": "9**9**9**9**9",
    "exponent tower in LaTeX": r"\boxed{9^{9^{9^{9^{9}}}}}",
    "large factorial": r"\boxed{(10^9)!}",
    "exponent of a float": "1e999999999",
    "Python": '__import__("os").system("echo harm")',
    "Python in a box": r'\boxed{__import__("os").system("echo harm")}',
    "null bytes": "\0" * 1000 + r"\boxed{" + "\0}",
    "surrogates": "\ud800\udfff" * 100 + r"$\boxed{" + "\udcff}$",
    "backslashes": "\\" * 1_000_000,
    "huge integer": "7" * 100_000,
    "huge integer in a box": r"\boxed{" + "7" * 1999 + "}",
    "dollars": "$" * 1_000_000,
    "brackets of displays": r"\[ \( $" * 100_000,
    "final answers": "The final answer is $" * 10_000,
    "sum without end": r"\boxed{\sum_{n=1}^{\infty} \frac{\sin(n^3)}{n^2 + \cos(n)}}",
    "integral": r"\boxed{\int_0^{10^9} \frac{\sin(x^{x})}{\ln(x)^{x}} dx}",
}


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer([RewardSpec(source="math", timeout=10.0)]) as scorer:
        yield scorer


def problem(gold: str) -> Problem:
    return Problem(question="", answer=gold)


@pytest.fixture(scope="module")
def values(scorer: Scorer) -> dict[tuple[str, str], tuple[float, str]]:
    scores = scorer.score([(problem(gold), answer) for gold, answer, _ in PAIRS])
    return {pair[:2]: (score.value, score.failure) for pair, score in zip(PAIRS, scores, strict=True)}


@pytest.mark.parametrize(("gold", "answer", "value"), PAIRS, ids=str)
def test_equal_as_mathematics(
    values: dict[tuple[str, str], tuple[float, str]], gold: str, answer: str, value: float
) -> None:
    assert values[gold, answer] == (value, "")


def test_hostile_answers_end_in_bounded_time_and_harm_no_other() -> None:
    answers = [(problem("4"), text) for text in HOSTILE.values()]
    mixed = [pair for answer in answers for pair in (answer, (problem("4"), "4"))]
    with Scorer([RewardSpec(source="math", timeout=TIMEOUT)], notify=lambda line: None) as scorer:
        began = time.monotonic()
        scores = scorer.score(mixed)
        assert time.monotonic() - began < len(answers) * (PATIENCE * TIMEOUT + GRACE + START)
    assert {name: score.value for name, score in zip(HOSTILE, scores[::2], strict=True)} == dict.fromkeys(HOSTILE, 0.0)
    assert {(score.value, score.failure) for score in scores[1::2]} == {(1.0, "")}


def test_a_gold_answer_that_cannot_be_parsed_is_not_usable(scorer: Scorer) -> None:
    golds = {
        "4": True,
        r"\boxed{\frac{1}{2}}": True,
        "It is 2 + 2.\n#### 4": True,
        r"\text{Evelyn}": True,
        "": False,
        "   ": False,
        "the proof is left to the reader": False,
        "@@@": False,
        r"\boxed{}": False,
        "####": False,
        "\0\ud800": False,
        "\\" * 1_000_000: False,
    }
    assert scorer.usable([problem(gold) for gold in golds]) == list(golds.values())
