"""C13: bf16 arithmetic as it is usual swallows small updates; a faithful one lets them act (science.md).

Four findings beside it say what follows for training: C13b on the loss (`c13b_trajectory`), C13c to C13e on the best
learning rates (`c13c_rates`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowregret.studies.claims.arms import ALPHA, Found, chosen
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.surface import Refused, aligned, surfaces
from lowregret.studies.swallowing import (
    FORWARD,
    Pair,
    arithmetics,
    cells_at,
    forward,
    labels,
    measured_steps,
    pairs,
    shared_error,
    shortest,
    values_of,
)
from lowregret.studies.verdicts import Evidence, Weighed, judged, weigh

QUESTION = "Does usual bf16 arithmetic swallow the first updates, which faithful arithmetic lets act?"


def c13(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """Forward fidelity after the first measured step (science.md, C13 and "Definition").

    Rule, all parts needed: of every rank and of full fine-tuning, at the learning rate that serves both arithmetics
    best and after the first step that was measured, in the shortest runs, the forward fidelity of the usual arithmetic
    (`add`; a copy to nearest) lies below 1 - `fidelity` (one-sided t over seeds, 5 %), and that of the faithful one
    (one accumulator; a stochastic copy) within 1 +- `fidelity` (TOST, 5 %). All seeds are measured on the same held-out
    sequences: the error that these leave is added to the seeds' in quadrature. Further steps and arithmetics, merging
    among them, stand in the details.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        found = shortest(pairs(aligned(in_question(surfaces(outcomes)), margins.least_seeds)))
        parts: list[Evidence] = []
        details: list[tuple[str, float]] = []
        for pair, name in zip(found, labels(found).values(), strict=True):
            parts += _parts(pair, name, margins)
            details += [(f"learning rate of {name}", pair.rate), *_others(pair, name)]
        return Weighed(parts=tuple(parts), used=tuple(pair.faithful for pair in found), details=tuple(details))

    return judged("C13", QUESTION, outcomes, rule, model=model)


def in_question(found: Found) -> Found:
    """The arms of a fidelity question: adapters on all matrices at the default alpha, and full fine-tuning.

    Raises:
        Refused: there is none.
    """
    arms = chosen(found, _belongs)
    if not arms:
        raise Refused("no arm of a fidelity study", "a fidelity study in bf16")
    return arms


def _belongs(arm: Arm) -> bool:
    return arm.method == "full" or (arm.alpha == ALPHA and arm.targets == ("all",))


def _parts(pair: Pair, label: str, margins: Margins) -> list[Evidence]:
    """Of the usual and of the faithful arithmetic."""
    steps = measured_steps(pair.faithful, pair.column)
    if not steps:
        raise Refused(f"the forward fidelity of {label} was not measured", "a fidelity study in bf16")
    low, high = 1 - margins.fidelity, 1 + margins.fidelity
    faithful, usual = FORWARD[pair.arm.method]
    parts: list[Evidence] = []
    for arithmetic, ends in ((usual, (-math.inf, low)), (faithful, (low, high))):
        rows = forward(pair.faithful, pair.column, step=steps[0], arithmetic=arithmetic)
        if not rows:
            raise Refused(f"{arithmetic} was not measured in every seed of {label}", "a fidelity study in bf16")
        quantity = f"forward fidelity of {arithmetic} after step {steps[0]}, {label}"
        error = shared_error(rows)
        parts.append(weigh(quantity, values_of(rows), *ends, margins=margins, shared_error=error))
    return parts


def _others(pair: Pair, label: str) -> list[tuple[str, float]]:
    """Mean over seeds of every arithmetic after every measured step."""
    cells = cells_at(pair.faithful, pair.column)
    details: list[tuple[str, float]] = []
    for step in measured_steps(pair.faithful, pair.column):
        for arithmetic in arithmetics(cells):
            rows = forward(pair.faithful, pair.column, step=step, arithmetic=arithmetic)
            if rows:
                name = f"forward fidelity, {label}, {arithmetic}, step {step}"
                details.append((name, float(values_of(rows).mean())))
    return details
