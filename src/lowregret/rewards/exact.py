"""Equality as text.

A gold answer with `####` (GSM8K) is what follows the last one; the answer is then the line after the completion's last
`####`, or where it has none its last number. Commas inside numbers, a currency sign before and a full stop after are
left out on both sides. Any other gold is compared with the whole completion, runs of white space as one space.

This scorer runs in the process that trains: it is a few passes over the text by `str` methods and one regular
expression without nested repeats over a bounded tail, so it can't hang, and sending text to a worker costs more.
"""

from __future__ import annotations

import re

from lowregret.rewards.answers import MARK, after_mark, without_reasoning
from lowregret.specs import Problem

TAIL = 10_000
"""Characters at the end of a completion among which a last number is looked for."""

_NUMBER = re.compile(r"(?:(?<![\w).])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")


class Exact:
    """Whether a completion says the gold answer, letter by letter."""

    def score(self, problem: Problem, completion: str) -> float:
        """1 or 0.

        >>> Exact().score(Problem(question="", answer="She has 3 + 1. #### 1,004"), "3 + 1001 is 1004.")
        1.0
        """
        text, gold = without_reasoning(completion), _gold(problem.answer)
        if text is None or not gold:
            return 0.0
        if MARK not in problem.answer:
            return float(_one_line(text) == gold)
        said = after_mark(text)
        if said is None:
            numbers = _NUMBER.findall(text[-TAIL:])
            said = numbers[-1] if numbers else ""
        return float(_plain(said) == gold)

    def usable(self, problem: Problem) -> bool:
        """Whether there is a gold answer at all."""
        return bool(_gold(problem.answer))


def _gold(answer: str) -> str:
    said = after_mark(answer)
    return _one_line(answer) if said is None else _plain(said)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _plain(text: str) -> str:
    """One line without what GSM8K's answers differ in: `$1,004.` is `1004`."""
    return re.sub(r"(?<=[0-9]),(?=[0-9]{3})", "", _one_line(text)).removesuffix(".").removeprefix("$").strip()
