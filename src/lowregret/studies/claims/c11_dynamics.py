"""C11: B outgrows A, and before training a high-rank adapter moves outputs as full fine-tuning does (kernel view)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lowregret.specs import Arm
from lowregret.store.study import Dynamics
from lowregret.studies.claims.arms import by_rank
from lowregret.studies.estimators import slopes
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Outcome
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, Surface, aligned, surfaces
from lowregret.studies.verdicts import Evidence, Weighed, judged, weigh

QUESTION = "Does B's norm pass A's by the end, and does the kernel's error fall as one over the root of the rank?"
HIGH_RANK = 64
"""From which on kernels must align (science.md, C11)."""
EXPECTED_SLOPE = -0.5
"""Of log kernel error on log rank: the mean of r independent terms."""


def c11(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """Norms cross, kernels align (science.md, C11).

    Rule, all parts needed, each a t test over seeds at 5 %: at every rank the spectral norm of B (geometric mean over
    matrices) ends above A's; at ranks from 64 up the cosine of the adapter's tangent kernel at B = 0 with its
    expectation over A is at least `alignment`; and the slope of log relative kernel error on log rank lies within
    `kernel_slope` of -1/2 (TOST). The expectation weighs each matrix of FullFT's kernel by alpha^2 / (3 r d_in).
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        found = by_rank(aligned(surfaces(outcomes), margins.least_seeds))
        if len(found) < 2:
            raise Refused(f"{len(found)} ranks, and a slope needs 2", "more ranks")
        moved = {arm: _dynamics(surface) for arm, surface in found.items()}
        crossed = [_crossed(arm, own, margins) for arm, own in moved.items()]
        high = [own for arm, own in moved.items() if (arm.rank or 0) >= HIGH_RANK]
        if not high:
            raise Refused(f"no rank from {HIGH_RANK} up, where kernels are to align", f"rank {HIGH_RANK} or more")
        alignment = np.mean([[one.kernel_alignment for one in own] for own in high], axis=0)
        errors = np.log([[one.kernel_error for one in own] for own in moved.values()])
        slope = slopes(np.log([arm.rank or 1 for arm in moved]), errors)
        low, top = EXPECTED_SLOPE - margins.kernel_slope, EXPECTED_SLOPE + margins.kernel_slope
        parts = (
            *crossed,
            weigh(
                f"kernel alignment from rank {HIGH_RANK} up", alignment, margins.alignment, math.inf, margins=margins
            ),
            weigh("slope of log kernel error on log rank", slope, low, top, margins=margins),
        )
        return Weighed(parts=parts, used=tuple(found.values()), details=_errors(moved))

    return judged("C11", QUESTION, outcomes, rule, model=model)


def _dynamics(surface: Surface) -> list[Dynamics]:
    """Of each seed."""
    if surface.num_rates != 1:
        raise Refused(f"{surface.arm.label} was trained at {surface.num_rates} rates", "a fixed grid of one rate")
    found = [outcome.dynamics for outcome in surface.outcomes]
    if not np.isfinite(surface.test).all():
        raise Refused(f"{surface.arm.label} diverged", "a lower learning rate")
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        raise Refused(f"the norms of {surface.arm.label} were not logged", "a dynamics study")
    return known


def _crossed(arm: Arm, own: Sequence[Dynamics], margins: Margins) -> Evidence:
    logs: Floats = np.log([one.norm_b[-1] / one.norm_a[-1] for one in own])
    return weigh(f"log of B's norm over A's at the end, {arm.label}", logs, 0.0, math.inf, margins=margins)


def _errors(moved: dict[Arm, list[Dynamics]]) -> tuple[tuple[str, float], ...]:
    return tuple(
        (f"relative kernel error, {arm.label}", float(np.mean([one.kernel_error for one in own])))
        for arm, own in moved.items()
    )
