"""C9: in reinforcement learning the smallest rank ends as high as full fine-tuning (paper, figures 6 to 8).

Its negative control is supervised training: a study that can't see rank 1 lose where it must can't call it equal here.
It is a `certify` question of the same study at the same rank; without it `with_control` takes `supported` back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from lowregret.studies.accuracy import Tuned, num_collapsed, tuned_accuracy
from lowregret.studies.claims.arms import Found, by_rank, chosen, only, primary_full
from lowregret.studies.estimators import grid_sizes
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.students_t import t_interval
from lowregret.studies.surface import Refused, Surface, aligned, surfaces
from lowregret.studies.verdicts import Weighed, judged, weigh

QUESTION = "In RL, does rank {rank} end within {margin:g} of full fine-tuning's held-out accuracy?"
LEAST_SEEDS = 8
"""Of the protocol (science.md, C9)."""
LEAST_GAIN = 0.1
"""Accuracy that full fine-tuning must gain over the base. Ours, three margins: where nobody learns all are equal."""


def c9(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """Final held-out accuracy of the smallest rank equals full fine-tuning's (science.md, C9).

    Rule: TOST, 5 %, of the difference at the last step, paired by seed, within +-`rl_parity`; at alpha 32, each arm at
    the measured rate with the least mean validation error, reported on test; at least 8 seeds. What a coarse grid may
    miss of a peak (`Tuned.grid_error`) is added to the seeds' error in quadrature. `supported` also needs that full
    fine-tuning learned (`LEAST_GAIN`) and, in a study, the negative control (`with_control`). The details hold every
    rank, the value at the end beside the best over steps, and how many cells collapsed: the best alone hides a
    collapse.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        smallest, full = smallest_and_full(surfaces(outcomes), max(LEAST_SEEDS, margins.least_seeds))
        lora, reference = tuned_accuracy(smallest), tuned_accuracy(full)
        error = math.hypot(lora.grid_error, reference.grid_error)
        part = weigh(
            f"final accuracy of rank {smallest.arm.rank} minus FullFT's",
            lora.final - reference.final,
            -margins.rl_parity,
            margins.rl_parity,
            margins=margins,
            shared_error=error,
        )
        details = (
            ("accuracy before training", float(reference.start.mean())),
            ("error that the grid leaves, accuracy", error),
            *_of_arm(reference),
            *_of_arm(lora),
            *_of_others(outcomes, smallest.arm),
        )
        used = {one.arm: one for one in (smallest, full)}
        return Weighed(
            parts=(part,),
            used=tuple(used.values()),
            details=(*details, *grid_sizes(used)),
            withheld=_learned_nothing(reference),
        )

    question = QUESTION.format(rank=decisive_rank(outcomes), margin=margins.rl_parity)
    return judged("C9", question, outcomes, rule, model=model)


def decisive_rank(outcomes: Sequence[Outcome]) -> int | str:
    """The smallest rank, which decides; `R` without adapters."""
    return min((outcome.arm.rank for outcome in outcomes if outcome.arm.rank is not None), default="R")


def smallest_and_full(found: Found, least_seeds: float) -> tuple[Surface, Surface]:
    """The smallest rank at alpha 32 and full fine-tuning, on the seeds that both have.

    Raises:
        Refused: one of them is missing or stands twice, or there are fewer seeds than the rule needs.
    """
    ranks = by_rank(found)
    if not ranks:
        raise Refused("no LoRA arm at alpha 32", "such an arm")
    _, full = only(chosen(found, primary_full), "FullFT")
    one, other = aligned({arm: found[arm] for arm in (next(iter(ranks)), full.arm)}, least_seeds).values()
    return one, other


def _of_arm(tuned: Tuned) -> tuple[tuple[str, float], ...]:
    label = tuned.surface.arm.label
    return (
        (f"accuracy of {label} at the end", float(tuned.final.mean())),
        (f"accuracy of {label}, best over steps", float(tuned.best.mean())),
        (f"learning rate of {label}", tuned.rate),
        (f"collapsed cells of {label}", float(num_collapsed(tuned.surface.outcomes))),
        (f"collapsed cells of {label} at that rate", float(num_collapsed(tuned.cells))),
    )


def _of_others(outcomes: Sequence[Outcome], decisive: Arm) -> list[tuple[str, float]]:
    """The other ranks against full fine-tuning; one without a best rate is left out: it does not decide."""
    found = surfaces(outcomes)
    _, full = only(chosen(found, primary_full), "FullFT")
    details: list[tuple[str, float]] = []
    for arm, surface in by_rank(found).items():
        if arm == decisive:
            continue
        try:
            one, other = aligned({arm: surface, full.arm: full}, 2).values()
            tuned = tuned_accuracy(one)
            difference = tuned.final - tuned_accuracy(other).final
        except Refused:
            continue
        low, high = t_interval(difference, level=0.1)
        name = f"final accuracy of rank {arm.rank} minus FullFT's"
        details += [
            (f"{name}: estimate", float(difference.mean())),
            (f"{name}: low", low),
            (f"{name}: high", high),
            *_of_arm(tuned),
        ]
    return details


def _learned_nothing(full: Tuned) -> tuple[str, str] | None:
    gain = float((full.final - full.start).mean())
    if gain >= LEAST_GAIN:
        return None
    return (
        f"full fine-tuning gains {gain:.3f} of accuracy, and where nobody learns all are equal",
        f"a task, or steps enough, on which it gains {LEAST_GAIN:g}",
    )


def with_control(finding: Finding, controls: Sequence[Finding]) -> Finding:
    """C9 as a study may say it: `supported` only where the study has seen the same rank lose in supervised training.

    Args:
        finding: of `c9`, corrected.
        controls: corrected findings of `certify` at the same rank on the same base; one that is contradicted will do,
            since a rank need not lose on every data set.
    """
    estimates = [one for one in controls if one.estimate is not None]
    details = tuple(
        (f"negative control {place}: {one.quantity}", one.estimate)
        for place, one in enumerate(estimates, 1)
        if one.estimate is not None
    )
    finding = replace(finding, details=(*finding.details, *details))
    if finding.verdict != "supported" or any(one.verdict == "contradicted" for one in controls):
        return finding
    what = "did not show the rank lose" if controls else "is missing"
    return replace(
        finding,
        verdict="inconclusive",
        reason=f"{finding.reason}, but the negative control {what}",
        settles="a certify question of this rank in the study, on supervised data that exceeds its capacity",
    )
