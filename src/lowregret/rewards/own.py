"""A reward function of the user's: `path/to/file.py:function`.

It is called for one answer, by keyword: `function(question=..., answer=..., completion=..., entry=...) -> float`, with
the completion whole, reasoning included, and dates and decimal numbers of the row as text (`wire`). The file is read
once, when the scorer is opened, and run in each worker from that text: a worker that is replaced in the middle of a run
then judges as the others do, even if the file was edited.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lowregret.errors import SpecError
from lowregret.specs import Problem

FORM = "path/to/file.py:function"


@dataclass(frozen=True, kw_only=True)
class Own:
    """One function of one file, as the file was when it was opened."""

    source: str
    path: str
    name: str
    text: bytes

    evaluates: ClassVar[bool] = False
    headroom: ClassVar[int] = 4 * 2**30

    def check(self) -> None:
        """Nothing beyond what `open_own` has seen: running the file is left to a worker."""

    def trim(self, problem: Problem, completion: str | None) -> tuple[Problem, str]:
        """Everything."""
        whole = Problem(question=problem.question, answer=problem.answer, entry=dict(problem.entry))
        return whole, completion or ""

    def load(self) -> None:
        """Run the file and find the function.

        Raises:
            SpecError: the file raises, or has no such function, or that can't be called as it will be.
        """
        function = _function(self)
        try:
            inspect.signature(function).bind(question="", answer="", completion="", entry={})
        except (TypeError, ValueError) as error:
            raise SpecError(
                f"reward {self.source!r}: {self.name} can't be called with question, answer, completion and entry "
                f"({error}); write def {self.name}(*, question, answer, completion, entry)"
            ) from error

    def score(self, problem: Problem, completion: str) -> object:
        """What the function returns, unchecked."""
        return _function(self)(
            question=problem.question, answer=problem.answer, completion=completion, entry=problem.entry
        )

    def usable(self, problem: Problem) -> bool:
        """Always: what the function needs is its own affair."""
        return True


def open_own(source: str) -> Own:
    """Read the file; run nothing.

    Raises:
        SpecError: no such file, or no function is named.
    """
    file, _, name = source.rpartition(":")
    if not file or not name.isidentifier():
        raise SpecError(f"reward {source!r} names no function; write {FORM}")
    path = Path(file).expanduser().absolute()
    try:
        text = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SpecError(f"reward {source!r}: can't read {path} ({reason}); write {FORM}") from error
    return Own(source=source, path=str(path), name=name, text=text)


def _function(own: Own) -> Callable[..., Any]:
    module = _module(own.source, own.path, own.text)
    function = getattr(module, own.name, None)
    if function is None:
        found = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise SpecError(
            f"reward {own.source!r}: {own.path} has no {own.name!r}; its functions: {', '.join(found) or 'none'}"
        )
    if not callable(function):
        raise SpecError(f"reward {own.source!r}: {own.name} is a {type(function).__name__}; name a function")
    return function


@functools.lru_cache(maxsize=64)
def _module(source: str, path: str, text: bytes) -> types.ModuleType:
    """The file as a module, run as `python path` would, with its folder on the path for what lies beside it."""
    folder = str(Path(path).parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = types.ModuleType(f"reward_{hashlib.sha256(path.encode()).hexdigest()[:12]}")
    module.__file__ = path
    # Dataclasses look their module up by name.
    sys.modules[module.__name__] = module
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise SpecError(
            f"reward {source!r}: {path} fails when imported ({_line(error)}); mend it: `python {path}` shows where"
        ) from error
    return module


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
