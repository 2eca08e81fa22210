"""From a reward's name to what scores it."""

from __future__ import annotations

import difflib
from typing import ClassVar, Protocol

from lowregret.errors import SpecError
from lowregret.rewards.exact import Exact
from lowregret.rewards.gym import Gym
from lowregret.rewards.math import Math
from lowregret.rewards.own import FORM, open_own
from lowregret.specs import Problem

NAMES = ("math", "exact", "reasoning-gym")


class Source(Protocol):
    """A scorer that runs in a worker. `check` and `trim` are called by the parent, the rest by the worker."""

    evaluates: ClassVar[bool]
    """Whether parts of an answer are run as Python on the way (`eval` in reasoning-gym, sympy's parser), so that the
    worker must refuse what writes, starts or connects."""
    headroom: ClassVar[int]
    """Bytes of address space that scoring may take beyond what the loaded worker has."""

    def check(self) -> None:
        """Raise SpecError at once where it can't work."""
        ...

    def trim(self, problem: Problem, completion: str | None) -> tuple[Problem, str] | None:
        """What the worker needs of a problem, and of a completion where there is one, cut to a bounded length. None:
        no answer was given, or none that could be right, which is 0 and no failure."""
        ...

    def load(self) -> None:
        """Import what it needs; may raise SpecError."""
        ...

    def score(self, problem: Problem, completion: str) -> object:
        """The score, not yet known to be a number. May raise, hang or die."""
        ...

    def usable(self, problem: Problem) -> bool:
        """Whether answers to this problem can be scored. May raise, hang or die."""
        ...


def source_of(name: str) -> Source | Exact:
    """The scorer of that name.

    Raises:
        SpecError: there is none.
    """
    if name == "exact":
        return Exact()
    if name == "math":
        return Math()
    if name == "reasoning-gym":
        return Gym()
    if ":" in name or name.endswith(".py"):
        return open_own(name)
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise SpecError(f"reward {name!r} is unknown; {hint}known: {', '.join(NAMES)}, {FORM}")
