"""Which figures a question has: what its protocol is about first, then the curves behind it.

No drawing here, and no judging: losses come from finished cells, verdicts from `findings.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lowregret.report.protocols.accuracy import accuracy_against_rate, accuracy_curves, accuracy_of_layers
from lowregret.report.protocols.asked import Asked
from lowregret.report.protocols.capacity import stored_bits
from lowregret.report.protocols.chart import Chart
from lowregret.report.protocols.curves import learning_curves, u_curves
from lowregret.report.protocols.losses import gap_against_batch, loss_against_parameters, regret_against_rank
from lowregret.report.protocols.moves import dynamics, early_drops
from lowregret.report.protocols.rates import rate_against_rank, ratios
from lowregret.report.protocols.swallowed import swallowed
from lowregret.specs import QuestionSpec
from lowregret.studies.outcome import Outcome

Draws = Callable[[Asked], tuple[Chart, ...]]

CURVES: tuple[Draws, ...] = (learning_curves, u_curves)

FIGURES: dict[str, tuple[Draws, ...]] = {
    "rank": (*CURVES, regret_against_rank),
    "certify": (*CURVES, regret_against_rank),
    "learning-rate": (rate_against_rank, *CURVES, regret_against_rank),
    "batch-size": (gap_against_batch, *CURVES),
    "layers": (loss_against_parameters, *CURVES),
    "early": (early_drops, learning_curves),
    "ratio": (ratios, *CURVES),
    "fidelity": (swallowed, *CURVES),
    "dynamics": (dynamics, learning_curves),
    "rl": (accuracy_against_rate, accuracy_curves),
    "rl-layers": (accuracy_of_layers, accuracy_against_rate, accuracy_curves),
    # Nobody can guess the facts, so held-out losses say nothing.
    "capacity": (stored_bits,),
    # Exact or counted: a table tells it (`study_tables`).
    "invariance": (),
    "cost": (),
}
"""By protocol, in the order of the page."""


def charts_of(
    index: int, question: QuestionSpec, outcomes: Sequence[Outcome], *, first_pass_bits: float | None = None
) -> tuple[Chart, ...]:
    """The figures of one question that its finished cells have data for.

    Args:
        index: of the question, for the files' names.
        question: as asked.
        outcomes: its finished cells.
        first_pass_bits: upper bound of what its training data holds; None where unknown.
    """
    if not outcomes:
        return ()
    asked = Asked(
        key=f"{index + 1}-{question.protocol}",
        question=question,
        outcomes=tuple(outcomes),
        first_pass_bits=first_pass_bits,
    )
    return tuple(chart for draws in FIGURES[question.protocol] for chart in draws(asked))
