"""reasoning-gym's own scorers: each task judges answers to its items.

The answer is the text inside the last `<answer>...</answer>` where the completion has one, else all of it without the
reasoning. A problem's `entry` holds `task` (the name), `item` (what the data set gave, whole), and where the task was
configured `config` (the keyword arguments beyond size and seed).
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from lowregret.errors import SpecError
from lowregret.rewards.answers import without_reasoning
from lowregret.specs import Problem

LONGEST = 100_000
"""Characters of an answer; a longer one earns 0 unasked. The longest right answer of all tasks at their default
settings has 991, and some scorers take quadratic time."""

_OPEN, _CLOSE = "<answer>", "</answer>"


class Gym:
    """What the task's own scorer gives, between 0 and 1; many give part of it for part of an answer."""

    evaluates: ClassVar[bool] = True
    headroom: ClassVar[int] = 2**30

    def check(self) -> None:
        """Raises SpecError where the library is missing."""
        if importlib.util.find_spec("reasoning_gym") is None:
            raise SpecError("reward 'reasoning-gym' needs the package reasoning-gym: pip install '.[rl]'")

    def trim(self, problem: Problem, completion: str | None) -> tuple[Problem, str] | None:
        """The item and the answer alone."""
        asked = Problem(question="", answer="", entry=dict(problem.entry))
        if completion is None:
            return asked, ""
        text = without_reasoning(completion)
        if text is None:
            return None
        answer = _tagged(text).strip()
        return (asked, answer) if answer and len(answer) <= LONGEST else None

    def load(self) -> None:
        """Import the library: a second or two, too much for the first answer's time limit."""
        import reasoning_gym

        assert reasoning_gym

    def score(self, problem: Problem, completion: str) -> object:
        """As the task's scorer has it, of a trimmed answer."""
        return _dataset(problem.entry).score_answer(completion, problem.entry["item"])

    def usable(self, problem: Problem) -> bool:
        """Whether the entry names a task that exists and carries its item."""
        return isinstance(problem.entry.get("item"), Mapping) and _dataset(problem.entry) is not None


def _tagged(text: str) -> str:
    """The last whole pair of tags decides; an opening tag without its end is text."""
    before, closed, _ = text.rpartition(_CLOSE)
    _, opened, inside = before.rpartition(_OPEN)
    return inside if closed and opened else text


def _dataset(entry: Mapping[str, Any]) -> Any:
    return _made(entry["task"], json.dumps(entry.get("config", {}), sort_keys=True))


@functools.lru_cache(maxsize=256)
def _made(task: str, config: str) -> Any:
    """The object whose method scores. Made once, because a few tasks read dictionaries when they are made."""
    import reasoning_gym

    return reasoning_gym.create_dataset(task, **{"size": 1, "seed": 0, **json.loads(config)})
