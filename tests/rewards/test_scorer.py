"""Several scorers together, what is refused, and what the room imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lowregret.errors import SpecError
from lowregret.rewards.scorer import Scorer
from lowregret.specs import Problem, RewardSpec, Score


def test_weighted_sum_and_the_first_failure(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def fails(*, completion, **row):\n    return 1.0 if completion == '4' else None\n"
        "def length(*, completion, **row):\n    return len(completion)\n"
    )
    specs = [
        RewardSpec(source="exact", weight=2.0),
        RewardSpec(source=f"{path}:fails", weight=0.5),
        RewardSpec(source="math"),
        RewardSpec(source=f"{path}:length", weight=-0.125),
    ]
    problem = Problem(question="2 + 2?", answer="4")
    with Scorer(specs, notify=lambda line: None) as scorer:
        scores = scorer.score([(problem, "4"), (problem, "4.0"), (problem, "five")])
        assert scores == [
            Score(value=2 + 0.5 + 1 - 0.125),
            Score(value=1 - 3 / 8, failure="error"),
            Score(value=-0.5, failure="error"),
        ]
        assert scorer.score([]) == []
        assert scorer.usable([problem, Problem(question="", answer="a long proof")]) == [True, False]


def test_exact_alone_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.get_context", None)
    with Scorer([RewardSpec(source="exact")], workers=4) as scorer:
        problems = [Problem(question="", answer=f"#### {k}") for k in range(512)]
        scores = scorer.score([(problem, "7 it is") for problem in problems])
        assert [k for k, score in enumerate(scores) if score.value] == [7]
        assert all(scorer.usable(problems))


@pytest.mark.parametrize(
    ("specs", "workers", "words"),
    [
        ([], 1, "reward is empty; name at least one"),
        ([RewardSpec(source="maths")], 1, "reward 'maths' is unknown; did you mean 'math'[?] known: math, exact, "),
        ([RewardSpec(source="resoning-gym")], 1, "did you mean 'reasoning-gym'"),
        (
            [RewardSpec(source="zzz")],
            1,
            "reward 'zzz' is unknown; known: math, exact, reasoning-gym, path/to/file.py:f",
        ),
        ([RewardSpec(source="math", timeout=0.0)], 1, "timeout is 0.0; give seconds above 0"),
        ([RewardSpec(source="math", timeout=float("inf"))], 1, "timeout is inf"),
        ([RewardSpec(source="math", weight=float("nan"))], 1, "weight is nan; give a finite number"),
        ([RewardSpec(source="math")], 0, "reward workers are 0; at least 1 is needed"),
    ],
)
def test_what_is_refused(specs: list[RewardSpec], workers: int, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Scorer(specs, workers)


@pytest.mark.parametrize(
    ("source", "package", "module"),
    [("math", "math-verify", "math_verify"), ("reasoning-gym", "reasoning-gym", "reasoning_gym")],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, source: str, package: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SpecError, match=rf"reward '{source}' needs the package {package}: pip install '.\[rl\]'"):
        Scorer([RewardSpec(source=source)])


def test_a_clean_process_loads_neither_torch_nor_the_libraries() -> None:
    code = (
        "import lowregret.rewards.scorer, sys; "
        "print([m for m in ('torch', 'sympy', 'math_verify', 'reasoning_gym', 'numpy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-W", "error", "-c", code], text=True) == "[]\n"
