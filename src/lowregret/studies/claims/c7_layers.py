"""C7: adapters on attention alone lose, on the MLPs alone do not (paper, figures 4 and 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lowregret.studies.claims.arms import ALPHA, Found, chosen
from lowregret.studies.estimators import grid_sizes, matched, tuned_differences
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, Surface, aligned, surfaces
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
        named = "loss of {}, nats a token"
        return weigh_layers(outcomes, _losses, named=named, parity=margins.parity, margins=margins)

    return judged("C7", QUESTION, outcomes, rule, model=model)


def _losses(one: Surface, other: Surface) -> tuple[Floats, float]:
    return tuned_differences(one, other), 0.0


def weigh_layers(
    outcomes: Sequence[Outcome],
    contrast: Callable[[Surface, Surface], tuple[Floats, float]],
    *,
    named: str,
    parity: float,
    margins: Margins,
) -> Weighed:
    """Both parts of the claim, on any scale whose smaller values are better.

    Args:
        outcomes: of the layers question.
        contrast: one arm minus the other, tuned, per seed; and the standard error that all seeds share.
        named: the quantity, with a place for the two arms.
        parity: on the scale of the contrast.
        margins: seeds and level.

    Raises:
        Refused: no arms of equal parameters, too few seeds, or what the contrast refuses.
    """
    found = aligned(_adapters(surfaces(outcomes)), margins.least_seeds)
    attention, mlp, every = _matched_arms(found)
    used = {arm: found[arm] for arm in (attention, mlp, every)}
    worse, worse_error = contrast(found[attention], found[mlp])
    equal, equal_error = contrast(found[mlp], found[every])
    first, second = named.format("attention-only minus MLP-only"), named.format("MLP-only minus MLP and attention")
    parts = (
        weigh(first, worse, 0.0, math.inf, margins=margins, shared_error=worse_error),
        weigh(second, equal, -parity, parity, margins=margins, shared_error=equal_error),
    )
    counts = [(f"parameters of {arm.label}", float(arm.params)) for arm in used]
    return Weighed(parts=parts, used=tuple(used.values()), details=(*counts, *grid_sizes(used)))


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
