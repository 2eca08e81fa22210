"""What a completion says in the end: its text without the reasoning, its boxed answers, what follows `####`.

All of it is linear in the length of the text or looks at a bounded part of it, because it runs in the process that
trains. Nothing here judges an answer.
"""

from __future__ import annotations

import re

MARK = "####"
"""GSM8K's sign for "the answer follows"."""

LONGEST_BOX = 2000
"""Characters of a boxed answer; a longer one is none. The longest in MATH has under 200."""
MOST_BOXES = 16
"""Boxes that are looked at, from the end: bounds the work on a text that repeats `\\boxed{`."""
LONGEST_JOINT = 40
"""Characters between two boxes that belong together."""

_OPEN, _CLOSE = "<think>", "</think>"
_BOXES = ("\\boxed{", "\\fbox{")
_BETWEEN = re.compile(r"[\s$.]*(?:,|,?\s*(?:\\text\{\s*)?(?:and|or)(?:\s*\})?)[\s$]*")
_PERCENT = re.compile(r"[\s$]*(?:\\?%|[Pp]ercent|[Pp]ct)")


def without_reasoning(completion: str) -> str | None:
    """The text outside `<think>...</think>`; None where the reasoning was not ended, since then nothing was answered.

    Many chat templates put the opening tag into the prompt: a closing one alone ends reasoning that began there.

    >>> without_reasoning("<think>2 or 3?</think>3"), without_reasoning("2 or 3?</think>3")
    ('3', '3')
    >>> without_reasoning("<think>2 or 3") is None
    True
    """
    *closed, last = completion.split(_CLOSE)
    if _OPEN in last:
        return None
    kept: list[str] = []
    for part in closed:
        before, opened, _ = part.partition(_OPEN)
        if opened:
            kept.append(before)
        else:
            kept.clear()
    return "".join(kept) + last


def after_mark(text: str) -> str | None:
    """The line after the last `####`, None where there is none.

    >>> after_mark("2 + 2 is 4\\n#### 4\\nNext question")
    '4'
    """
    _, mark, rest = text.rpartition(MARK)
    return rest.strip().partition("\n")[0].strip() if mark else None


def last_boxes(text: str) -> list[str]:
    """What the last box holds; several where boxes are joined by a comma, "and" or "or". Empty without a whole box.

    >>> last_boxes(r"First \\boxed{7}. In the end $\\boxed{1}$ and $\\boxed{\\frac{1}{2}}$.")
    ['1', '\\\\frac{1}{2}']
    """
    found: list[str] = []
    first = end = len(text)
    for _ in range(MOST_BOXES):
        start, begin = max((text.rfind(sign, 0, end), len(sign)) for sign in _BOXES)
        if start < 0:
            break
        end = start
        close = _closing(text, start + begin)
        if close is None:
            if found:
                break
            continue
        if found and (first - close > LONGEST_JOINT or not _BETWEEN.fullmatch(text, close + 1, first)):
            break
        content = text[start + begin : close]
        percent = not found and _PERCENT.match(text, close + 1)
        found.insert(0, content + r"\%" if percent else content)
        first = start
    return found


def _closing(text: str, begin: int) -> int | None:
    """Where the brace closes that stands before `begin`."""
    depth, place, stop = 1, begin, min(len(text), begin + LONGEST_BOX)
    while place < stop:
        letter = text[place]
        if letter == "\\":
            place += 1
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if depth == 0:
                return place
        place += 1
    return None
