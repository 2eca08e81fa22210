"""What goes through the pipe between a pool and its workers, as JSON: nothing that a worker sends is ever unpickled.

Workers run code that models wrote (`worker`), so that what they say is text, read as text. JSON has no tuples and no
bytes, and rows hold both (some of reasoning-gym's tasks score tuples and lists differently): they travel under names of
their own. Dates and decimal numbers come as their text; nothing else can be sent.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, cast, get_args

from lowregret.specs import Problem
from lowregret.specs.reward import Failure

TUPLE, PAIRS, BYTES = "\0tuple", "\0pairs", "\0bytes"
"""Keys of what stands for a tuple, for a mapping whose keys are not all text, and for bytes."""
AS_TEXT = (date, time, timedelta, Decimal)


class Outcome(NamedTuple):
    """What became of one answer with one scorer."""

    value: float
    failure: Failure = ""
    reason: str = ""


class Job(NamedTuple):
    """A problem and an answer as `packed` has them, or a problem and None where its own use is asked."""

    scorer: int
    payload: str


def packed(problem: Problem, completion: str | None) -> str:
    """A problem and an answer as JSON.

    Raises:
        TypeError: the row holds something that can't be sent.
        ValueError, RecursionError: it holds itself, or is too deep.
    """
    parts = (problem.question, problem.answer, _plain(problem.entry), completion)
    return json.dumps(parts)


def unpacked(payload: str) -> tuple[Problem, str | None]:
    """What `packed` was given, but for dates and decimal numbers."""
    question, answer, entry, completion = json.loads(payload)
    return Problem(question=question, answer=answer, entry=cast("dict[str, Any]", _restored(entry))), completion


def jobs_message(jobs: Sequence[Job]) -> bytes:
    """Jobs for a worker."""
    return json.dumps(jobs).encode()


def jobs_of(message: bytes) -> list[Job]:
    """The inverse of `jobs_message`."""
    return [Job(*job) for job in json.loads(message)]


def outcome_message(outcome: Outcome, *, goes_on: bool) -> bytes:
    """A worker's answer, and whether it takes more."""
    return json.dumps([*outcome, goes_on]).encode()


def outcome_of(message: bytes) -> tuple[Outcome, bool]:
    """The inverse of `outcome_message`.

    Raises:
        ValueError: it is none; the worker is not itself any more.
    """
    try:
        value, failure, reason, goes_on = json.loads(message)
        outcome = Outcome(float(value), failure, str(reason))
    except TypeError as error:
        raise ValueError("no outcome") from error
    if failure not in get_args(Failure) or not isinstance(goes_on, bool):
        raise ValueError("no outcome")
    return outcome, goes_on


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return {TUPLE: [_plain(item) for item in cast("tuple[object, ...]", value)]}
    if isinstance(value, list):
        return [_plain(item) for item in cast("list[object]", value)]
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        if all(isinstance(key, str) for key, _ in items):
            return {cast(str, key): _plain(item) for key, item in items}
        return {PAIRS: [[_plain(key), _plain(item)] for key, item in items]}
    if isinstance(value, bytes):
        return {BYTES: base64.b64encode(value).decode()}
    return str(value) if isinstance(value, AS_TEXT) else value


def _restored(value: object) -> object:
    if isinstance(value, list):
        return [_restored(item) for item in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    found = cast("dict[str, Any]", value)
    if found.keys() == {TUPLE}:
        return tuple(_restored(item) for item in found[TUPLE])
    if found.keys() == {BYTES}:
        return base64.b64decode(found[BYTES])
    if found.keys() == {PAIRS}:
        return {_restored(key): _restored(item) for key, item in found[PAIRS]}
    return {key: _restored(item) for key, item in found.items()}
