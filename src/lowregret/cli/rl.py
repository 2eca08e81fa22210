"""`lowregret rl`: what reinforcement adds to `session`. The training itself is `training.rl.train_rl`."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from lowregret.cli.bases import ensure_bases
from lowregret.cli.flags import Rl
from lowregret.cli.machine import num_threads
from lowregret.cli.prepare import Notify
from lowregret.cli.session import Found, Slots, carry_out
from lowregret.data.problems import ProblemData, load_problems
from lowregret.data.tokenizer import TextTokenizer
from lowregret.errors import SpecError
from lowregret.models.locate import locate_model
from lowregret.rewards.scorer import Scorer
from lowregret.specs import RunSpec
from lowregret.store import RunDirectory
from lowregret.training.progress import ProgressListener

MIN_RISE = 0.02
"""Accuracy by which `--must-improve` wants the test split to rise: one standard error at 600 problems of even odds."""
PROBED = 4
"""Answers of the data that are scored before a run starts."""
MOST_WORKERS = 8
"""Processes that score. Nothing else computes meanwhile, but each holds an interpreter of its own."""


def rl(command: Rl) -> int:
    """Train; 0 done, 1 the result fell short, 130 stopped with a checkpoint."""
    with ExitStack() as stack:
        return carry_out(command, partial(_find, stack), _shortfall)


def _find(stack: ExitStack, spec: RunSpec, notify: Notify) -> Found:
    """Model, scorer and problems. The scorer works until the stack is left."""
    assert spec.rl is not None
    if spec.rl.sampling.engine == "vllm":
        from lowregret.sampling.vllm_engine import require_vllm

        require_vllm()
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        notify(line)

    scorer = stack.enter_context(Scorer(spec.rl.rewards, min(MOST_WORKERS, num_threads()), note))
    ensure_bases([spec.model], notify=notify)
    model = locate_model(spec.model, notify=notify)
    tokenizer = TextTokenizer.from_folder(model.path)
    data = load_problems(spec.data, spec.rl, tokenizer, usable=lambda problem: scorer.usable([problem])[0])
    _refuse_failing(scorer, data, notes)

    def train(run: RunDirectory, listener: ProgressListener) -> None:
        from lowregret.training.rl import train_rl

        train_rl(run, model=model, data=data, scorer=scorer, listener=listener)

    return Found(model=model, data=data, train=train)


def _refuse_failing(scorer: Scorer, data: ProblemData, notes: list[str]) -> None:
    """Refuse scorers that fail on the data's own answers: they would on a model's, and the run would learn nothing.

    Args:
        notes: what the scorer has said of its failures.

    Raises:
        SpecError: none of the first answers can be scored.
    """
    answers = [(p.problem, p.problem.answer) for p in data.train if p.problem.answer.strip()][:PROBED]
    if answers and all(score.failure for score in scorer.score(answers)):
        why = notes[-1] if notes else "it gives no reason"
        raise SpecError(
            f"rl.rewards: the data's own answers can't be scored: {why}; let it return 0 where it can't tell"
        )


def _shortfall(slots: Slots) -> str | None:
    missed = [name for name, slot in slots.items() if not _improved(slot)]
    return f"the test accuracy did not rise by {MIN_RISE}: {', '.join(missed)}" if missed else None


def _improved(slot: dict[str, Any]) -> bool:
    before, after = slot["initial_accuracy"].get("test"), slot["final_accuracy"].get("test")
    return None not in (before, after) and after >= before + MIN_RISE
