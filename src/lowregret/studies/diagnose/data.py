"""Rules about the data: what was dropped, what carries loss, what leaked, and what the held-out splits can resolve."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lowregret.studies.diagnose.curves import drop
from lowregret.studies.diagnose.symptom import Severity, Symptom
from lowregret.studies.diagnose.view import MARGIN, DataCounts, RunView

MANY_DROPPED, MOST_DROPPED = 0.05, 0.3
"""Share of rows that were left out from which it is a warning, and serious."""
MANY_LEAKED = 0.01
"""Share of a test set whose prompts stand in training from which its published scores are in doubt."""
LITTLE_LOSS = 0.02
"""Share of tokens that carry loss under which a step teaches next to nothing."""
MANY_TURNS = 0.1
"""Earlier answers without loss, by kept rows."""
DISAGREE = 1.5
"""Ratio of two splits' drops in loss that samples of one distribution do not reach."""
LEAST_TOKENS = 2000
"""Tokens of a split under which that ratio may be chance."""


def leaked(view: RunView) -> Iterator[Symptom]:
    """Prompts of the test set that stand in training too."""
    data = view.data
    assert data is not None
    if not data.test_overlaps:
        return
    share = data.test_overlaps / (data.test_overlaps + data.test)
    yield Symptom(
        rule="leaked-test-rows",
        where="run",
        severity="warning" if share >= MANY_LEAKED else "note",
        seen=f"{data.test_overlaps} test rows ({share:.1%}) have prompts of the training data; they were dropped",
        why="the test loss here is clean, but other results on this test set include what training has shown",
        remedy="another --test-data or --test-split, or none: one is then held out of the training data",
    )


def splits_disagree(view: RunView) -> Iterator[Symptom]:
    """One held-out split falls much further than the other: near copies of training, or another kind of data."""
    tokens = {row.split: row.tokens for row in view.evals}
    if min(tokens.get("validation", 0), tokens.get("test", 0)) < LEAST_TOKENS:
        return
    for slot in view.spec.slots:
        drops = {split: view.held_out(slot.name, split) for split in ("validation", "test")}
        if slot.name in view.retired or any(len(curve) < 2 for curve in drops.values()):
            continue
        (small, less), (large, more) = sorted(((drop(c), split) for split, c in drops.items()))
        if large - small <= 10 * MARGIN or large <= DISAGREE * max(small, 0.0):
            continue
        yield Symptom(
            rule="splits-disagree",
            where=slot.name,
            severity="warning",
            seen=f"the loss fell by {large:.3f} nats on {more} and by {small:.3f} on {less}",
            why=f"{more} may hold near copies of training rows (only equal prompts are kept apart), or {less} differs",
            remedy="remove near copies from the data; choose by a split of the kind that you will use the model on",
        )


def rows_dropped(view: RunView) -> Iterator[Symptom]:
    """Rows that were left out, or cut."""
    data = view.data
    assert data is not None
    longer = f"--max-length above {view.spec.data.max_length}"
    for rows, what, why, remedy in (
        (
            data.masked,
            "had no token that carries loss",
            "completions were masked or cut away",
            f"{longer}, or another --format, --columns",
        ),
        (
            data.overlong,
            "were longer than --max-length",
            "long examples are missing from training and test alike",
            longer,
        ),
        (data.empty, "had no answer", "the column of answers may be another one", "--format, --columns"),
    ):
        if data.share(rows) >= MANY_DROPPED:
            yield _dropped(data, rows, what, why, remedy)
    if data.share(data.truncated) >= MANY_DROPPED:
        seen = f"{data.truncated} of {data.read} rows ({data.share(data.truncated):.0%}) were cut to --max-length"
        why = "an answer without its end teaches not to end"
        yield Symptom(rule="rows-dropped", where="run", severity="warning", seen=seen, why=why, remedy=longer)


def masked_away(view: RunView) -> Iterator[Symptom]:
    """Few of the tokens that are computed carry loss, or answers that could."""
    facts, data = view.plan.facts, view.data
    share = facts.num_completion_tokens / max(1, facts.num_tokens)
    last = view.spec.data.loss_on == "last"
    if share < LITTLE_LOSS:
        per_step = facts.num_completion_tokens / max(1, facts.num_examples) * view.spec.train.batch_size
        yield Symptom(
            rule="completions-masked",
            where="run",
            severity="warning",
            seen=f"{share:.2%} of the training tokens carry loss, {per_step:.0f} tokens a step",
            why="the rest is computed and not learned from",
            remedy="--loss-on all"
            if last
            else "check --format and --columns; a larger --batch-size if answers are short",
        )
    if data is not None and data.turns_without_loss >= MANY_TURNS * max(1, data.kept):
        yield Symptom(
            rule="completions-masked",
            where="run",
            severity="warning",
            seen=f"{data.turns_without_loss} earlier answers in {data.kept} conversations carry no loss",
            why="the model's chat template rewrites earlier answers, so that they are not what the model would say",
            remedy="a row of its own for each answer",
        )


def small_test_split(view: RunView) -> Iterator[Symptom]:
    """The best slot's lead on the test split is within what validation and test disagree by."""
    validation, test = view.finals("validation"), view.finals("test")
    names = [name for name in validation if name in test]
    tokens = {row.split: row.tokens for row in view.evals}
    if len(names) < 2:
        return
    first, second = sorted(names, key=lambda name: validation[name])[:2]
    leads = [(validation[n] - validation[first], test[n] - test[first]) for n in names if n != first]
    # Differences between slots are the same in expectation on both splits, so their disagreement is the noise of both.
    variance = sum((v - t) ** 2 for v, t in leads) / len(leads)
    error = math.sqrt(variance / (1 + tokens["test"] / tokens["validation"]))
    lead = test[second] - test[first]
    if abs(lead) <= MARGIN or abs(lead) >= 2 * error:
        return
    needed = (2 * error / lead) ** 2
    rows = "" if view.data is None else f" --test-size {math.ceil(view.data.test * needed)}"
    yield Symptom(
        rule="test-too-small",
        where=f"{first}, {second}",
        severity="warning",
        seen=(
            f"the test split sets them {lead:+.3f} nats apart, validation "
            f"{validation[second] - validation[first]:+.3f}; "
            f"differences on {tokens['test']} test tokens are sure to about {2 * error:.3f}"
        ),
        why="which of them is better is not known",
        remedy=f"more test examples:{rows or ' a larger --test-size'}; or several seeds: lowregret study certify",
    )


def _dropped(data: DataCounts, rows: int, what: str, why: str, remedy: str) -> Symptom:
    severity: Severity = "serious" if data.share(rows) >= MOST_DROPPED else "warning"
    seen = f"{rows} of {data.read} rows ({data.share(rows):.0%}) {what} and were dropped"
    return Symptom(rule="rows-dropped", where="run", severity=severity, seen=seen, why=why, remedy=remedy)
