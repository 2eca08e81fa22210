"""From estimates over seeds to verdicts whose two kinds of error are each controlled.

A claim says that a parameter lies in a band. `supported` rejects that it lies outside: two one-sided t tests (TOST,
Schuirmann 1987), of which one remains where the band is open to a side. `contradicted` rejects that it lies inside: a
t test of an interval hypothesis (Hodges and Lehmann 1954). What neither rejects is `inconclusive`: never "p > 0.05, so
equal". Claims of several parts are supported when all parts are (no correction is due: Berger 1982) and contradicted
when one is (Bonferroni over parts). Across the claims of a study `holm` keeps the chance of any wrong verdict at 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from lowregret.studies.finding import Finding, Verdict
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Outcome
from lowregret.studies.students_t import MOST_SEEDS, Floats, quantile, seeds_needed, spread, upper_tail
from lowregret.studies.surface import Refused, Surface

FAMILY_LEVEL = 0.05
"""Chance of any wrong verdict among the claims of a study."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One parameter against its band.

    >>> import numpy as np
    >>> weigh("slope", np.array([0.01, 0.03, 0.02]), -0.1, 0.1, margins=Margins()).p_inside < 0.05
    True
    """

    quantity: str
    """What was estimated, with its unit."""
    estimate: float
    interval: tuple[float, float]
    """Two-sided, of coverage 1 - 2 x level: each end is a one-sided bound at the level."""
    low: float
    """Of the band that the claim names; -inf where it is open."""
    high: float
    p_inside: float
    """Of the test that can show that the parameter lies inside the band."""
    p_outside: float
    """Of the test that can show that it lies outside."""
    level: float
    seeds: int
    needed: int | None
    """Seeds at which the verdict that the estimate points to comes with Margins.power, if estimate and spread hold;
    None beyond 200."""


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """What a claim's rule has to decide on.

    >>> Weighed(parts=(), used=()).withheld is None
    True
    """

    parts: tuple[Evidence, ...]
    """All must lie inside for the claim to be supported."""
    used: tuple[Surface, ...]
    details: tuple[tuple[str, float], ...] = ()
    withheld: tuple[str, str] | None = None
    """Why `supported` may not be said although all parts are inside (a control failed), and what would settle it."""


def weigh(
    quantity: str,
    values: Floats,
    low: float,
    high: float,
    *,
    margins: Margins,
    level: float | None = None,
    shared_error: float = 0.0,
) -> Evidence:
    """Test a mean over seeds against a band.

    Args:
        quantity: what the values are, with unit.
        values: one a seed, independent; at least two.
        low: lower end of the band, or -inf.
        high: upper end, or inf.
        margins: level and power.
        level: in place of the margins'.
        shared_error: standard error that all seeds share, so that more of them don't reduce it: that of a grid.
    """
    level = margins.level if level is None else level
    seeds = len(values)
    mean, deviation = float(values.mean()), spread(values)
    error = math.hypot(deviation / math.sqrt(seeds), shared_error)
    p_inside = max(upper_tail(_ratio(mean - low, error), seeds - 1), upper_tail(_ratio(high - mean, error), seeds - 1))
    beyond = max(low - mean, mean - high)
    width = _ratio(high - low, error)
    t = _ratio(beyond, error)
    p_outside = min(1.0, upper_tail(t, seeds - 1) + upper_tail(t + width, seeds - 1))
    # Near both ends of a band at once, each of the two tests must come with half the risk of failing.
    inside = beyond < 0
    power = (1 + margins.power) / 2 if inside and math.isfinite(high - low) else margins.power
    half = quantile(1 - level, seeds - 1) * error
    return Evidence(
        quantity=quantity,
        estimate=mean,
        interval=(mean - half, mean + half),
        low=low,
        high=high,
        p_inside=p_inside,
        p_outside=p_outside,
        level=level,
        seeds=seeds,
        needed=_needed(abs(beyond), deviation, shared_error, level=level, power=power),
    )


def _needed(distance: float, deviation: float, shared_error: float, *, level: float, power: float) -> int | None:
    """Seeds for a distance, of which the shared error takes its part first, in quadrature."""
    taken = shared_error * (quantile(1 - level, MOST_SEEDS) + quantile(power, MOST_SEEDS))
    left = distance**2 - taken**2
    return seeds_needed(math.sqrt(left), deviation, level=level, power=power) if left > 0 else None


def _ratio(distance: float, error: float) -> float:
    if error > 0:
        return distance / error
    return math.copysign(math.inf, distance) if distance else 0.0


def exponentiated(evidence: Evidence, quantity: str) -> Evidence:
    """Evidence on a logarithm, shown as the ratio that it is the logarithm of."""
    low, high = evidence.interval
    return replace(
        evidence,
        quantity=quantity,
        estimate=math.exp(evidence.estimate),
        interval=(math.exp(low), math.exp(high)),
        low=math.exp(evidence.low),
        high=math.exp(evidence.high),
    )


def judged(
    claim: str,
    question: str,
    outcomes: Sequence[Outcome],
    rule: Callable[[], Weighed],
    *,
    model: str,
    level: float | None = None,
) -> Finding:
    """The finding of a rule; where the rule refuses, an inconclusive one that says what would settle it."""
    try:
        weighed = rule()
    except Refused as refused:
        return Finding(
            claim=claim,
            question=question,
            quantity="",
            estimate=None,
            interval=None,
            margin=None,
            verdict="inconclusive",
            seeds=len({outcome.seed for outcome in outcomes}),
            model=model,
            cells=tuple(outcome.cell for outcome in outcomes),
            reason=refused.reason,
            settles=refused.settles,
        )
    return _decide(claim, question, weighed, model)


def _decide(claim: str, question: str, weighed: Weighed, model: str) -> Finding:
    parts = weighed.parts
    weakest = max(parts, key=lambda part: part.p_inside)
    worst = min(parts, key=lambda part: part.p_outside)
    p_outside = min(1.0, len(parts) * worst.p_outside)
    settles = ""
    verdict: Verdict = "inconclusive"
    shown = weakest
    if p_outside <= worst.level:
        verdict, shown, reason = "contradicted", worst, f"{_described(worst)} lies outside {_band(worst)}"
    elif weakest.p_inside > weakest.level:
        reason = f"{_described(weakest)} does not decide on {_band(weakest)}"
        settles = _settles(parts)
    elif weighed.withheld is not None:
        reason, settles = weighed.withheld
    else:
        verdict, reason = "supported", f"{_described(weakest)} lies inside {_band(weakest)}"
    supporting = weakest.p_inside if weighed.withheld is None else 1.0
    details = [(f"{part.quantity}: {name}", value) for part in parts if part is not shown for name, value in _row(part)]
    return Finding(
        claim=claim,
        question=question,
        quantity=shown.quantity,
        estimate=shown.estimate,
        interval=shown.interval,
        margin=_margin(shown),
        verdict=verdict,
        seeds=shown.seeds,
        model=model,
        cells=tuple(cell for surface in weighed.used for cell in surface.cells),
        reason=reason,
        settles=settles,
        p_value=min(supporting, p_outside),
        details=(*details, *weighed.details),
    )


def _described(part: Evidence) -> str:
    low, high = part.interval
    return f"the {1 - 2 * part.level:.0%} interval {low:.4g} to {high:.4g} of the {part.quantity} ({part.seeds} seeds)"


def _band(part: Evidence) -> str:
    if math.isinf(part.low):
        return f"values below {part.high:g}"
    if math.isinf(part.high):
        return f"values above {part.low:g}"
    return f"{part.low:g} to {part.high:g}"


def _row(part: Evidence) -> Iterable[tuple[str, float]]:
    return (("estimate", part.estimate), ("low", part.interval[0]), ("high", part.interval[1]))


def _margin(part: Evidence) -> float | tuple[float, float]:
    if math.isinf(part.low):
        return part.high
    if math.isinf(part.high):
        return part.low
    return (part.low, part.high)


def _settles(parts: Sequence[Evidence]) -> str:
    """Seeds that decide: all parts that point inside must, or the first that points outside."""
    outside = [part for part in parts if not part.low < part.estimate < part.high]
    needed = [part.needed for part in (outside or parts)]
    known = [count for count in needed if count is not None]
    if not known or (not outside and len(known) < len(needed)):
        return (
            f"the estimate lies on the margin: even {MOST_SEEDS} seeds would not tell; "
            "a wider margin, less noise or a finer grid"
        )
    count = min(known) if outside else max(known)
    return f"{max(count, parts[0].seeds + 1)} seeds, if estimate and spread stay as they are"


def holm(findings: Sequence[Finding], *, level: float = FAMILY_LEVEL) -> tuple[Finding, ...]:
    """Withdraw the verdicts that do not survive Holm's correction over the claims of a study.

    Each claim enters with the smaller of its two p-values. Directional decisions after Holm keep the chance of any
    wrong verdict at the level for independent claims (Shaffer 1980); the simulations in the tests measure it.
    Findings without a p-value (refused, or exact) are no part of the family.

    Args:
        findings: of one study.
        level: of the family.
    """
    tested = [k for k, finding in enumerate(findings) if finding.p_value is not None]
    adjusted = holm_adjusted([finding.p_value for finding in findings if finding.p_value is not None])
    corrected = list(findings)
    for k, p_value in zip(tested, adjusted, strict=True):
        if findings[k].verdict != "inconclusive" and p_value > level:
            corrected[k] = replace(
                findings[k],
                verdict="inconclusive",
                reason=f"{findings[k].verdict} alone, but not after Holm's correction over {len(tested)} claims "
                f"(adjusted p = {p_value:.3f})",
                settles="more seeds, or fewer claims in one study",
            )
    return tuple(corrected)


def holm_adjusted(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down p-values (1979), in the order given; as `statsmodels` has them, without its 3 s of imports.

    >>> holm_adjusted([0.04, 0.01, 0.03])
    (0.06, 0.03, 0.06)
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, k in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[k]))
        adjusted[k] = largest
    return tuple(adjusted)
