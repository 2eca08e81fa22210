"""The process in which answers are scored: one after another, each with a limit on time and on memory.

Limits, from the inside out. At `timeout` seconds of processor time an exception ends the scorer, wherever Python is
running, and the worker goes on. Where that does no good (a loop in C, a scorer that catches everything) the kernel ends
the process a second later; that also ends a worker whose parent was killed and which can't notice. A scorer that waits
instead of computing is ended by the parent (`pool`). Processor time, because a busy machine must not turn right answers
into wrong ones. Address space is bounded relative to the loaded worker, so that an exponent tower raises MemoryError
long before the machine swaps.

While a library evaluates parts of an answer as Python (several of reasoning-gym's scorers call `eval` on it), whatever
would write a file, start a process, send a signal or open a connection is refused. That stops accidents of a model that
writes code; it is no jail for an attacker.
"""

from __future__ import annotations

import math
import multiprocessing
import numbers
import os
import resource
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lowregret.errors import SpecError
from lowregret.rewards.sources import Source
from lowregret.rewards.wire import Outcome, jobs_of, outcome_message, unpacked
from lowregret.specs import Problem

GRACE = 1.0
"""Seconds between asking a scorer to stop and ending its process."""
LONGEST_REASON = 300

_REFUSED = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "os.remove", "os.rename", "os.rmdir",
    "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.putenv", "os.unsetenv",
    "shutil.", "subprocess.", "socket.", "ctypes.", "pty.", "signal.", "tempfile.",
)  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TimeUp(BaseException):
    """Raised in the scorer by the timer; no Exception, so that a scorer's own handlers let it pass."""


class Guard:
    """An audit hook that can be switched on: hooks can't be taken away again."""

    def __init__(self) -> None:
        self.active = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event.startswith(_REFUSED) or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES):
            raise PermissionError(f"an answer may not do this: {event}")


def work(connection: Connection, sources: Sequence[Source], timeouts: Sequence[float]) -> None:
    """Say that all is loaded (an empty text) or why not, then score what comes until the parent closes the pipe."""
    _begin()
    try:
        for source in sources:
            source.load()
    except SpecError as error:
        connection.send_bytes(str(error).encode())
        return
    guard = Guard()
    headroom = max(source.headroom for source in sources)
    # Past half of it a worker makes room for a fresh one: libraries keep what they have seen, and a leak would in the
    # end fail every answer.
    full = _limit_memory(headroom)
    connection.send_bytes(b"")
    while True:
        try:
            jobs = jobs_of(connection.recv_bytes())
        except (EOFError, OSError):
            return
        for job in jobs:
            outcome = _outcome(sources[job.scorer], job.payload, timeouts[job.scorer], guard)
            goes_on = full == 0 or _size() < full
            connection.send_bytes(outcome_message(outcome, goes_on=goes_on))
            if not goes_on:
                os._exit(0)


def _begin() -> None:
    os.setsid()  # Ctrl-C reaches the parent alone
    os.dup2(2, 1)  # the run's standard output is its result; what a scorer prints is not
    # The workers stand side by side; read by numpy and torch when they are first imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # eval warns about the odd syntax of an answer, once for each.
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, _time_up)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _time_up(number: int, frame: object) -> None:
    raise TimeUp


def _outcome(source: Source, payload: str, seconds: float, guard: Guard) -> Outcome:
    """Score one answer. Whatever comes out of a scorer is caught here: it is this answer's failure alone."""
    try:
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds + GRACE)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            problem, completion = unpacked(payload)
            guard.active = source.evaluates
            value = _ask(source, problem, completion)
        finally:
            guard.active = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except TimeUp:
        return Outcome(0.0, "timeout", f"more than {seconds:g} s")
    except BaseException as error:  # noqa: BLE001  # SystemExit and KeyboardInterrupt included
        return Outcome(0.0, "error", _reason(error))
    return _number(value)


def _ask(source: Source, problem: Problem, completion: str | None) -> object:
    return source.usable(problem) if completion is None else source.score(problem, completion)


def _number(value: object) -> Outcome:
    if not isinstance(value, numbers.Real):
        return Outcome(0.0, "error", f"gave {type(value).__name__}, a number is needed")
    try:
        number = float(value)
    except (OverflowError, ValueError, TypeError) as error:
        return Outcome(0.0, "error", _reason(error))
    return Outcome(number) if math.isfinite(number) else Outcome(0.0, "error", f"gave {number}")


def _reason(error: BaseException) -> str:
    """One printable line, with the place in the scorer's file."""
    lines = traceback.format_exception_only(error)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(place[0].filename).name}, line {place[0].lineno})" if place else ""
    text = " ".join(lines[-1][: 2 * LONGEST_REASON].split())[:LONGEST_REASON] + where
    return text.encode("ascii", "backslashreplace").decode()


def _limit_memory(headroom: int) -> int:
    """Bound the address space; gives the size at which it is half used up, 0 for no bound, bytes. Only Linux says what
    a process has."""
    size = _size()
    if not size:
        return 0
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = size + headroom if hard == resource.RLIM_INFINITY else min(size + headroom, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return size + (soft - size) // 2


def _size() -> int:
    """Address space of this process, bytes; 0 where that can't be told."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
