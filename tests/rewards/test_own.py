"""A user's own function: how it is found, and every way in which it can misbehave."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowregret.errors import SpecError
from lowregret.rewards.pool import PATIENCE
from lowregret.rewards.scorer import Scorer
from lowregret.rewards.worker import GRACE
from lowregret.specs import Problem, RewardSpec, Score

TIMEOUT = 0.25
START = 20.0
"""Seconds allowed for a worker that must be replaced."""

JUDGE = '''
"""Does what the completion names."""
import ctypes, fractions, itertools, mmap, os, resource, signal, subprocess, time
import numpy as np

def judge(question, answer, completion, entry):
    return getattr(Deeds, completion)(question, answer, entry) if hasattr(Deeds, completion) else float(completion)

class Deeds:
    def row(question, answer, entry): return float(question == "q" and answer == "a" and entry == {"k": [1]})
    def true(*_): return True
    def whole(*_): return 3
    def fraction(*_): return fractions.Fraction(1, 2)
    def numpy(*_): return np.float32(0.5)
    def pid(*_): return os.getpid()
    def spin(*_):
        while True: pass
    def spin_in_c(*_): return sum(itertools.repeat(0))
    def catch_all(*_):
        while True:
            try:
                while True: pass
            except BaseException: pass
    def sleep(*_): time.sleep(1000)
    def hold(*_): ctypes.PyDLL(None).pause()
    def wait_for_child(*_): subprocess.run(["sleep", "1000"])
    def leave(*_): os._exit(0)
    def fault(*_): ctypes.string_at(0)
    def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
    def memory(*_): return len(bytearray(2**40))
    def raises(*_): raise ValueError("first line\\nsecond line")
    def mute(*_): raise Mute
    def leaves(*_): raise SystemExit(0)
    def interrupts(*_): raise KeyboardInterrupt
    def deep(*_): return Deeds.deep()
    def nan(*_): return float("nan")
    def infinite(*_): return float("inf")
    def huge(*_): return 10**1000
    def text(*_): return "1.0"
    def nothing(*_): return None
    def array(*_): return np.zeros(3)
    def hoards(*_):
        HOARD.append(mmap.mmap(-1, 2**30))
        return len(HOARD)
    def prints(*_):
        print("from the scorer")
        return 1.0

HOARD = []  # of memory that is asked for and never touched

class Mute(Exception):
    def __str__(self): raise RuntimeError
'''

GOOD = {"row": 1.0, "true": 1.0, "whole": 3.0, "fraction": 0.5, "numpy": 0.5, "0.25": 0.25, "-1": -1.0}
BAD = {
    "spin": "timeout",
    "spin_in_c": "timeout",
    "catch_all": "timeout",
    "sleep": "timeout",
    "hold": "timeout",
    "wait_for_child": "timeout",
    "leave": "crash",
    "fault": "crash",
    "kill": "crash",
    "memory": "error",
    "raises": "error",
    "mute": "error",
    "leaves": "error",
    "interrupts": "error",
    "deep": "error",
    "nan": "error",
    "infinite": "error",
    "huge": "error",
    "text": "error",
    "nothing": "error",
    "array": "error",
    "no such deed": "error",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "judge.py"
    path.write_text(JUDGE)
    return path


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return []


@pytest.fixture(scope="module")
def scorer(file: Path, notes: list[str]) -> Iterator[Scorer]:
    with Scorer([RewardSpec(source=f"{file}:judge", timeout=TIMEOUT)], notify=notes.append) as scorer:
        yield scorer


def answers(*texts: str) -> list[tuple[Problem, str]]:
    return [(Problem(question="q", answer="a", entry={"k": [1]}), text) for text in texts]


def test_what_a_function_gets_and_gives(scorer: Scorer) -> None:
    assert scorer.score(answers(*GOOD)) == [Score(value=value) for value in GOOD.values()]


def test_misbehaviour_costs_its_own_answer_alone(scorer: Scorer, notes: list[str]) -> None:
    """Between any two that misbehave stands one that must keep its score, in its place."""
    texts = [text for k, deed in enumerate(BAD) for text in (str(k), deed)]
    began = time.monotonic()
    scores = scorer.score(answers(*texts))
    assert time.monotonic() - began < len(BAD) * (PATIENCE * TIMEOUT + GRACE + START)
    assert scores[::2] == [Score(value=float(k)) for k in range(len(BAD))]
    assert {deed: score.failure for deed, score in zip(BAD, scores[1::2], strict=True)} == BAD
    assert {score.value for score in scores[1::2]} == {0.0}
    assert 1 < len(notes) <= 10
    assert all("judge.py:judge: " in note and note.isprintable() for note in notes)
    assert len(set(notes)) == len(notes)


def test_a_failure_is_told_with_its_place(file: Path) -> None:
    told: list[str] = []
    with Scorer([RewardSpec(source=f"{file}:judge")], notify=told.append) as scorer:
        scorer.score(answers("raises", "raises", "nan"))
    line = JUDGE.splitlines().index('    def raises(*_): raise ValueError("first line\\nsecond line")') + 1
    assert told == [
        f"reward {file}:judge: error, counts 0: ValueError: first line second line (judge.py, line {line})",
        f"reward {file}:judge: error, counts 0: gave nan",
    ]


def test_workers_live_between_calls_and_share_the_answers(file: Path) -> None:
    with Scorer([RewardSpec(source=f"{file}:judge", timeout=30.0)], workers=2) as scorer:
        first = [score.value for score in scorer.score(answers(*["pid"] * 200))]
        second = [score.value for score in scorer.score(answers(*["pid"] * 200))]
        assert len(set(first)) == 2
        assert set(second) == set(first)
        assert os.getpid() not in first
    for pid in set(first):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_worker_that_dies_between_calls_costs_nothing(file: Path) -> None:
    with Scorer([RewardSpec(source=f"{file}:judge", timeout=30.0)]) as scorer:
        pid = int(scorer.score(answers("pid"))[0].value)
        os.kill(pid, signal.SIGKILL)
        while _runs(pid):
            time.sleep(0.01)
        assert scorer.score(answers("1", "2")) == [Score(value=1.0), Score(value=2.0)]


def test_a_worker_whose_memory_grows_is_replaced_before_answers_fail(file: Path) -> None:
    """One GiB more with each answer; four are allowed, and past two a fresh worker goes on."""
    with Scorer([RewardSpec(source=f"{file}:judge", timeout=30.0)]) as scorer:
        scores = scorer.score(answers(*["hoards"] * 7))
    assert [score.failure for score in scores] == [""] * 7
    assert [score.value for score in scores] == [1, 2, 1, 2, 1, 2, 1]


def test_large_answers_and_many(scorer: Scorer) -> None:
    texts = [" " * 10**7 + "0.5", *(str(k) for k in range(1000)), " " * 10**7 + "0.25"]
    assert [score.value for score in scorer.score(answers(*texts))] == [0.5, *map(float, range(1000)), 0.25]


def test_a_row_that_cannot_be_sent_is_an_error(scorer: Scorer) -> None:
    strange = Problem(question="q", answer="a", entry={"k": lambda: None})
    scores = scorer.score([(strange, "true"), *answers("true")])
    assert scores == [Score(value=0.0, failure="error"), Score(value=1.0)]


def test_what_a_scorer_prints_is_not_the_runs_output(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Scorer([RewardSpec(source=f"{file}:judge")]) as scorer:
        assert scorer.score(answers("prints")) == [Score(value=1.0)]
    seen = capfd.readouterr()
    assert (seen.out, seen.err) == ("", "from the scorer\n")


def test_the_file_is_the_one_that_was_opened(tmp_path: Path) -> None:
    """A worker that is replaced judges by the text that the run began with; what lies beside the file can be used."""
    (tmp_path / "beside.py").write_text("VALUE = 1\n")
    path = tmp_path / "mine.py"
    body = "import beside, os\ndef f(*, completion, **row):\n    return beside.VALUE if completion else os._exit(0)\n"
    path.write_text(body)
    with Scorer([RewardSpec(source=f"{path}:f")], notify=lambda line: None) as scorer:
        path.write_text(body.replace("beside.VALUE", "2"))
        assert [score.value for score in scorer.score(answers("x", "", "x"))] == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        (None, "f", r"can't read .*mine.py \(No such file or directory\); write path/to/file.py:function"),
        ("def g(): pass", "", "names no function; write path/to/file.py:function"),
        ("def g(): pass\ndef h(): pass", "f", "has no 'f'; its functions: g, h"),
        ("f = 3", "f", "f is a int; name a function"),
        ("def f(completion): return 1", "f", "f can't be called with question, answer, completion and entry"),
        ("1 / 0", "f", r"mine.py fails when imported \(ZeroDivisionError: division by zero\); mend it: `python"),
        ("def f(:", "f", r"fails when imported \(SyntaxError"),
        ("raise SystemExit('a\\nb')", "f", r"fails when imported \(SystemExit: a b\)"),
        ("import no_such_module", "f", "No module named 'no_such_module'"),
        ("\0", "f", "fails when imported"),
    ],
)
def test_a_file_that_is_no_scorer_is_refused_at_opening(
    tmp_path: Path, text: str | None, name: str, words: str
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with (
        pytest.raises(SpecError, match=words) as caught,
        Scorer([RewardSpec(source=f"{path}:{name}" if name else str(path))]),
    ):
        pass
    assert "reward" in str(caught.value) and "\n" not in str(caught.value)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path, file: Path) -> None:
    """Even one that spins in C and can't notice: its own limit ends it."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from lowregret.rewards.scorer import Scorer\n"
        "from lowregret.specs import Problem, RewardSpec\n"
        "if __name__ == '__main__':\n"
        f"    with Scorer([RewardSpec(source={f'{file}:judge'!r}, timeout=0.2)]) as scorer:\n"
        "        problem = Problem(question='q', answer='a')\n"
        "        print(int(scorer.score([(problem, 'pid')])[0].value), flush=True)\n"
        "        scorer.score([(problem, 'spin_in_c')])\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _runs(worker):
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(pid: int) -> bool:
    """A dead process may wait to be reaped by whoever adopted it. Its first thread can be dead before the others, and
    the pipe is open until the last one is."""
    states: list[str] = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            states.append(stat.read_text().rpartition(")")[2].split()[0])
    return any(state != "Z" for state in states)
