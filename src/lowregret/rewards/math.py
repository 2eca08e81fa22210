"""Equality as mathematics, by the library math-verify: sympy decides whether two expressions are the same.

What is compared, of gold and completion alike: the last box (`\\boxed{}`, several where they are joined by "and"),
else the line after the last `####`, else the last 2000 characters, in which the library looks for an answer. Only that
part is handed to the library: its patterns take cubic time on long texts, and its grammar takes seconds for thousands
of braces. What the library gives up on is a wrong answer, no failure.

Its own time limits work in main threads only and are off; the worker's limit stands in for them.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
from typing import Any, ClassVar

from lowregret.errors import SpecError
from lowregret.rewards.answers import after_mark, last_boxes, without_reasoning
from lowregret.specs import Problem

TAIL = 2000
"""Characters at the end of a text without a box. Ten times as many took the library's patterns minutes."""

_NUMBER = re.compile(r"[-+]?[0-9][0-9.,]*%?")
_EXPONENT = re.compile(r"(?<![A-Za-z0-9.])([-+]?[0-9.]+)[eE]([-+]?[0-9]+)")
_FUNCTION = re.compile(r"(?<![A-Za-z\\])(sin|cos|tan|log|ln|exp|pi)(?![A-Za-z])")
_ROOT = re.compile(r"(?<![A-Za-z\\])sqrt\(([^()]*)\)")
_COMMANDS = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|operatorname|begin|end)\{[^{}]*\}|\\[A-Za-z]+|(?<![A-Za-z])(?:and|or)(?![A-Za-z])"
)


class Math:
    """Whether a completion's answer equals the gold one as mathematics."""

    evaluates: ClassVar[bool] = True
    headroom: ClassVar[int] = 2**30

    def check(self) -> None:
        """Raises SpecError where the library is missing."""
        if importlib.util.find_spec("math_verify") is None:
            raise SpecError("reward 'math' needs the package math-verify: pip install '.[rl]'")

    def trim(self, problem: Problem, completion: str | None) -> tuple[Problem, str] | None:
        """The parts that the library gets to see."""
        gold = Problem(question="", answer=_decisive(problem.answer))
        if completion is None:
            return gold, ""
        text = without_reasoning(completion)
        return (gold, _decisive(text)) if text and not text.isspace() else None

    def load(self) -> None:
        """Import the library, and have it silent: it warns in each process that its time limits are off."""
        import math_verify

        logging.getLogger(math_verify.__name__).setLevel(logging.CRITICAL)

    def score(self, problem: Problem, completion: str) -> float:
        """1 or 0, of trimmed texts."""
        from math_verify import verify

        return float(verify(_parsed(problem.answer), _parse(completion), timeout_seconds=None))

    def usable(self, problem: Problem) -> bool:
        """Whether the gold answer holds an expression; a mere string that the library fell back to is none."""
        return any(not isinstance(part, str) for part in _parsed(problem.answer))


def _decisive(text: str) -> str:
    boxes = last_boxes(text)
    if len(boxes) == 1:
        return f"\\boxed{{{boxes[0]}}}"
    if boxes:
        return " and ".join(f"$\\boxed{{{box}}}$" for box in boxes)
    line = after_mark(text)
    return _as_latex(text[-TAIL:].strip() if line is None else line[-TAIL:])


def _as_latex(text: str) -> str:
    """A bare expression between dollars, because the library reads LaTeX only there; prose and numbers as they are.

    >>> _as_latex("x^2 + 1"), _as_latex("3 sin(x)"), _as_latex("so it is 3")
    ('$x^2 + 1$', '$3 \\\\sin(x)$', 'so it is 3')
    """
    text = text.removeprefix("**").removesuffix("**").removeprefix("\\$")
    if "\\begin{" in text:
        text = text.replace("\n", " ")
    if not text or "\n" in text or "$" in text or "\\(" in text or "\\[" in text or _NUMBER.fullmatch(text):
        return text
    latex = _FUNCTION.sub(r"\\\1", _ROOT.sub(r"\\sqrt{\1}", _EXPONENT.sub(r"\1 \\times 10^{\2}", text)))
    prose = re.search(r"\s", text) and re.search("[A-Za-z]{2,}", _COMMANDS.sub(" ", latex))
    return text if prose else f"${latex}$"


@functools.lru_cache(maxsize=1024)
def _parsed(gold: str) -> list[Any]:
    """A step asks for the same few gold answers again and again, once for each completion of a group."""
    return _parse(gold)


def _parse(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    targets = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    return parse(text, targets, parsing_timeout=None)  # pyright: ignore[reportArgumentType]  # None is documented
