"""C4: LoRA wants about ten times FullFT's learning rate, whatever the base's width (paper, figure 2 and LR law)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lowregret.studies.claims.arms import ALPHA, Found, chosen, only
from lowregret.studies.estimators import grid_sizes, log_ratios, slopes
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.students_t import Floats, t_interval
from lowregret.studies.surface import Refused, aligned, surfaces
from lowregret.studies.verdicts import Evidence, Weighed, exponentiated, judged, weigh

QUESTION = "Is LoRA's best learning rate about 10 times FullFT's in long runs, at every width?"
LEAST_WIDTHS = 3


def c4(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """The ratio of LR* lies near 10 at every width and does not drift with width (science.md, C4).

    Rule: in the longest runs, at alpha 32, the 90 % t interval of the ratio lies inside `ratio_low`..`ratio_high` at
    each of at least 3 widths, and that of the slope of log ratio on log width inside +-`width_slope` (TOST, 5 %).
    `supported` also needs the 95 % interval of that slope to contain 0, the protocol's words; the band is what makes
    it a test. Details: the ratio against sqrt(3) d / alpha, which Adam's first step would make it.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        found = aligned(_longest(surfaces(outcomes)), margins.least_seeds)
        widths = sorted({arm.width for arm in found if arm.method == "lora"})
        if len(widths) < LEAST_WIDTHS:
            raise Refused(f"{len(widths)} widths, and the rule needs {LEAST_WIDTHS}", "bases of further widths")
        primary = {arm: _ratio(found, arm) for arm in found if arm.method == "lora" and arm.alpha == ALPHA}
        by_width = {width: _mean(primary, width) for width in widths}
        parts = [_near_ten(width, logs, margins) for width, logs in by_width.items()]
        drift = slopes(np.log(widths), np.stack([by_width[width] for width in widths]))
        slope = weigh(
            "slope of log ratio on log width", drift, -margins.width_slope, margins.width_slope, margins=margins
        )
        return Weighed(
            parts=(*parts, slope),
            used=tuple(found.values()),
            details=(*_against_first_step(found), *grid_sizes(found)),
            withheld=_drifts(drift),
        )

    return judged("C4", QUESTION, outcomes, rule, model=model)


def _longest(found: Found) -> Found:
    longest = {arm.width: 0 for arm in found}
    for arm in found:
        longest[arm.width] = max(longest[arm.width], arm.steps)
    return chosen(found, lambda arm: not arm.variant and arm.steps == longest[arm.width])


def _ratio(found: Found, arm: Arm) -> Floats:
    """Log ratio of a LoRA arm to FullFT on the same base."""
    _, full = only(_full_beside(found, arm), f"FullFT at width {arm.width}")
    return log_ratios(found[arm], full)


def _full_beside(found: Found, arm: Arm) -> Found:
    alike = (arm.width, arm.batch_size, arm.steps)
    return chosen(found, lambda other: other.method == "full" and (other.width, other.batch_size, other.steps) == alike)


def _mean(ratios: Mapping[Arm, Floats], width: int) -> Floats:
    """Over the ranks of one width."""
    own = [ratio for arm, ratio in ratios.items() if arm.width == width]
    if not own:
        raise Refused(f"no LoRA arm with alpha {ALPHA:g} at width {width}", "such an arm")
    return np.mean(own, axis=0)


def _near_ten(width: int, logs: Floats, margins: Margins) -> Evidence:
    low, high = math.log(margins.ratio_low), math.log(margins.ratio_high)
    return exponentiated(weigh("", logs, low, high, margins=margins), f"LoRA/FullFT ratio of LR* at width {width}")


def _drifts(values: Floats) -> tuple[str, str] | None:
    low, high = t_interval(values, level=0.05)
    if low <= 0 <= high:
        return None
    return (
        f"the slope of log ratio on log width lies inside its band, but its 95 % interval {low:.3f} to {high:.3f} "
        "leaves out 0",
        "nothing: the ratio drifts with width, by less than the band",
    )


def _against_first_step(found: Found) -> tuple[tuple[str, float], ...]:
    """The ratio over sqrt(3) d / alpha at each width and alpha: 1 where the first step explains it.

    An arm of another alpha whose LR* is refused is left out here: the verdict is about alpha 32 alone.
    """
    details: list[tuple[str, float]] = []
    for arm in found:
        if arm.method == "full" or not arm.width:
            continue
        try:
            ratio = math.exp(float(_ratio(found, arm).mean()))
        except Refused:
            continue
        name = f"ratio over sqrt(3) d / alpha, {arm.label}, width {arm.width}"
        details.append((name, ratio * arm.alpha / (math.sqrt(3) * arm.width)))
    return tuple(details)
