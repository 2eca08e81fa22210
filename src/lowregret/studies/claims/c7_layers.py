"""C7: adapters on attention alone lose, on the MLPs alone do not (paper, figures 4 and 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowregret.studies.claims.arms import ALPHA, Found, chosen
from lowregret.studies.estimators import grid_sizes, matched, tuned_differences
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.surface import Refused, aligned, surfaces
from lowregret.studies.verdicts import Weighed, judged, weigh

QUESTION = "At equal parameters, is attention-only worse than MLP-only, and MLP-only as good as both?"
TOLERANCE = 0.02
"""Relative difference of parameter counts; ranks are whole numbers, so an exact match may not exist."""


def c7(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """Attention-only is worse than MLP-only, which equals MLP and attention, at equal parameters (science.md, C7).

    Rule: two parts, both needed: a one-sided paired t test of the tuned test losses of attention-only against MLP-only
    (5 %), and TOST of MLP-only against all within +-`parity` (5 %). Learning rates are tuned in each arm. Parameter
    counts must agree to 2 %.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        found = aligned(_adapters(surfaces(outcomes)), margins.least_seeds)
        attention, mlp, every = _matched_arms(found)
        used = {arm: found[arm] for arm in (attention, mlp, every)}
        parts = (
            weigh(
                "loss of attention-only minus MLP-only, nats a token",
                tuned_differences(found[attention], found[mlp]),
                0.0,
                math.inf,
                margins=margins,
            ),
            weigh(
                "loss of MLP-only minus MLP and attention, nats a token",
                tuned_differences(found[mlp], found[every]),
                -margins.parity,
                margins.parity,
                margins=margins,
            ),
        )
        counts = [(f"parameters of {arm.label}", float(arm.params)) for arm in used]
        return Weighed(parts=parts, used=tuple(used.values()), details=(*counts, *grid_sizes(used)))

    return judged("C7", QUESTION, outcomes, rule, model=model)


def _adapters(found: Found) -> Found:
    return chosen(found, lambda arm: arm.method == "lora" and arm.alpha == ALPHA and not arm.variant)


def _matched_arms(found: Found) -> tuple[Arm, Arm, Arm]:
    """Attention, MLP, all: of each the arm whose parameters come nearest to MLP-only's."""
    mlps = [arm for arm in found if arm.targets == ("mlp",)]
    if len(mlps) != 1:
        raise Refused(f"{len(mlps)} arms on the MLPs alone where the rule compares one", "one such arm")
    nearest: list[Arm] = []
    for kind in ("attention", "all"):
        arms = [arm for arm in found if arm.targets == (kind,)]
        arm = min(arms, key=lambda arm: abs(arm.params - mlps[0].params), default=None)
        if arm is None or not matched(arm, mlps[0], tolerance=TOLERANCE):
            raise Refused(
                f"no arm with targets {kind} has MLP-only's {mlps[0].params} parameters, to {TOLERANCE:.0%}",
                "ranks at which the counts agree",
            )
        nearest.append(arm)
    return nearest[0], mlps[0], nearest[1]
