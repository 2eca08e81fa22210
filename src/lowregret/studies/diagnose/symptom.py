"""What a rule finds, and what a rule is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from lowregret.studies.diagnose.view import RunView

Severity = Literal["serious", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("serious", "warning", "note")
"""`serious`: the result can't be used as it is. `warning`: loss was given away, or a number is less sure than it looks.
`note`: nothing is lost yet."""


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """One failure that the logs show.

    >>> Symptom(rule="diverged", where="r8", severity="serious", seen="the loss was NaN at step 9", why="",
    ...     remedy="--lr 1e-4").where
    'r8'
    """

    rule: str
    """Id of the rule that found it."""
    where: str
    """Slot or arm; several are separated by commas; `run` or `study` where it concerns all."""
    severity: Severity
    seen: str
    """What the logs show, with the numbers."""
    why: str
    """Why it matters."""
    remedy: str
    """What to do, in flags of `lowregret` where there are any."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One way in which a run fails.

    >>> Rule(name="nothing", looks_for="nothing", lacks=lambda view: None, find=lambda view: ()).name
    'nothing'
    """

    name: str
    looks_for: str
    """What it looks for, in a few words."""
    lacks: Callable[[RunView], str | None]
    """What the run does not record that the rule needs; None where the rule can be applied."""
    find: Callable[[RunView], Iterable[Symptom]]
