"""C13b: trained in usual bf16 arithmetic, a short run realises less of the loss drop (science.md, C13)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lowregret.studies.claims.c13_swallowed import in_question
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Outcome
from lowregret.studies.surface import Refused, aligned, surfaces
from lowregret.studies.swallowing import HALF, NEARLY_ALL, Pair, labels, pairs, reached, shares, shortest
from lowregret.studies.verdicts import Evidence, Weighed, judged, weigh

QUESTION = "Does a run in usual bf16 arithmetic end with less of the loss drop than one in faithful arithmetic?"


def c13b(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """Trajectory fidelity at the end of the shortest runs (science.md, C13 and "Definition").

    The share of the faithful arm's test loss drop that the usual arm has, same seed, same learning rate (the one that
    serves both best), each trained and evaluated in its own arithmetic.

    Rule, all parts needed: at every rank and in full fine-tuning the share after the last step lies below 1 -
    `fidelity` (one-sided t over seeds, 5 %); its mirror image contradicts. Details: the dead zone, the first evaluated
    step from which on the mean share stays at a half, and at 95 %, and the share at every evaluated step, of all run
    lengths.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        found = pairs(aligned(in_question(surfaces(outcomes)), margins.least_seeds))
        judged_pairs, names = shortest(found), labels(found)
        parts = tuple(_part(pair, names[pair.arm], margins) for pair in judged_pairs)
        used = tuple(surface for pair in judged_pairs for surface in (pair.faithful, pair.usual))
        details = [row for pair in found for tell in (_dead_zone, _curve) for row in tell(pair, names[pair.arm])]
        return Weighed(parts=parts, used=used, details=tuple(details))

    return judged("C13b", QUESTION, outcomes, rule, model=model)


def _part(pair: Pair, label: str, margins: Margins) -> Evidence:
    steps, values = shares(pair)
    last = values[:, -1]
    if not np.isfinite(last).all():
        raise Refused(f"the loss of {label} does not fall in {steps[-1]} steps", "another learning rate")
    quantity = f"share of the faithful loss drop after {steps[-1]} steps, {label}"
    return weigh(quantity, last, -math.inf, 1 - margins.fidelity, margins=margins)


def _curve(pair: Pair, label: str) -> list[tuple[str, float]]:
    named = f"share of the drop, {label}, run of {pair.arm.steps}"
    steps, values = _told(pair)
    means = values.mean(axis=0)
    return [
        (f"{named}, step {step}", float(mean)) for step, mean in zip(steps, means, strict=True) if np.isfinite(mean)
    ]


def _dead_zone(pair: Pair, label: str) -> list[tuple[str, float]]:
    steps, values = _told(pair)
    details: list[tuple[str, float]] = []
    for share in (HALF, NEARLY_ALL):
        named = f"{share:.0%} of the drop, {label}, run of {pair.arm.steps}"
        step = reached(steps, values.mean(axis=0), share) if steps else None
        if step is not None:
            details.append((f"first step with {named}", float(step)))
        elif steps:
            details.append((f"steps without {named}", float(steps[-1])))
    return details


def _told(pair: Pair) -> tuple[tuple[int, ...], np.ndarray]:
    """Shares for the details; none where they can't be formed: these do not decide."""
    try:
        return shares(pair)
    except Refused:
        return (), np.empty((len(pair.faithful.seeds), 0))
