"""The table of an RL question on a study's page: every arm at its best rate, at the end and at its best."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lowregret.report.numbers import MISSING, count, learning_rate
from lowregret.report.protocols.asked import arm_names, by_arm
from lowregret.report.study_tables import html_table
from lowregret.specs import Arm
from lowregret.specs.rl import COLLAPSED
from lowregret.studies.accuracy import num_collapsed, tuned_accuracy
from lowregret.studies.outcome import Outcome
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, surfaces

HEAD = (
    "arm",
    "parameters",
    "best rate",
    "accuracy at the end",
    "best over steps",
    "collapsed at that rate",
    "at any rate",
)


def accuracy_table(outcomes: Sequence[Outcome]) -> str:
    """A line an arm: the value at the end beside the best over steps, because the best alone hides a collapse."""
    names = arm_names([outcome.arm for outcome in outcomes])
    rows = [_row(names[arm], arm, own) for arm, own in by_arm(outcomes).items()]
    return (
        f"{html_table(HEAD, ''.join(rows), numbers_from=1)}"
        "<p class=note>Test accuracy at the rate with the best mean validation accuracy at the end: mean over seeds, "
        "the smallest and the largest seed. Best over steps: at the step that validation would have stopped at. A cell "
        f"collapsed that ends below {COLLAPSED:.0%} of its best accuracy, or diverged. A dash: the best rate lies on "
        "the edge of the grid.</p>"
    )


def _row(name: str, arm: Arm, outcomes: Sequence[Outcome]) -> str:
    (surface,) = surfaces(outcomes).values()
    try:
        tuned = tuned_accuracy(surface)
        found = (
            learning_rate(tuned.rate),
            _seeds(tuned.final),
            _seeds(tuned.best),
            f"{num_collapsed(tuned.cells)} of {len(tuned.cells)}",
        )
    except Refused:
        found = (MISSING,) * 4
    every = f"{num_collapsed(outcomes)} of {len(outcomes)}"
    cells = "".join(f"<td class=number>{text}</td>" for text in (count(arm.params), *found, every))
    return f"<tr><th scope=row>{escape(name)}</th>{cells}</tr>"


def _seeds(values: Floats) -> str:
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"
