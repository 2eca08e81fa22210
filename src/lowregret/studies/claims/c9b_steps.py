"""C9b: in reinforcement learning the smallest rank gets there in as many steps as full fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from lowregret.studies.accuracy import Reached, Tuned, steps_to, tuned_accuracy
from lowregret.studies.claims.c9_rl_parity import LEAST_GAIN, LEAST_SEEDS, decisive_rank, smallest_and_full
from lowregret.studies.estimators import grid_sizes
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Outcome
from lowregret.studies.surface import Refused, surfaces
from lowregret.studies.verdicts import Evidence, Weighed, exponentiated, judged, weigh

QUESTION = "In RL, does rank {rank} need no more than {margin:g} times full fine-tuning's steps to the threshold?"
THRESHOLD = 0.9
"""Share of the way from the base's accuracy to full fine-tuning's last one, means over seeds."""
BEYOND = 2.0
"""Times the run at which a seed counts that never got there, in the test that could call LoRA as fast."""
MOST_CENSORED = 0.25
"""Share of the seeds of an arm that may never get there: more, and the mean is made of what was not seen."""


def c9b(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """The ratio of LoRA's to full fine-tuning's steps to the threshold is at most `steps_ratio`.

    Steps are read from test curves, linear between evaluations, at the rates of C9; the threshold is the same for all.

    Rule: one-sided t test, 5 %, at least 8 seeds, of the log ratio against log `steps_ratio`; its mirror image
    contradicts. Evaluations leave a step open between two of them: that error, uniform, is added to the seeds' in
    quadrature. A seed that never gets there is censored, and each test takes the value that is worse for it: for
    `supported` LoRA counts `BEYOND` times the run, for `contradicted` the run's last step; for full fine-tuning the
    other way round. With more than a quarter of LoRA's seeds censored nothing supports; of full fine-tuning's, nothing
    is said.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        smallest, full = smallest_and_full(surfaces(outcomes), max(LEAST_SEEDS, margins.least_seeds))
        lora, reference = tuned_accuracy(smallest), tuned_accuracy(full)
        accuracy = threshold(reference)
        slow, fast = steps_to(lora, accuracy), steps_to(reference, accuracy)
        if fast.num_censored > MOST_CENSORED * len(fast.steps):
            raise Refused(
                f"{fast.num_censored} of {len(fast.steps)} seeds of full never reach the threshold of {accuracy:.3f}",
                "longer runs, or more held-out prompts",
            )
        details = (
            ("threshold, accuracy", accuracy),
            *_of_arm(smallest.arm.label, slow),
            *_of_arm("full", fast),
        )
        used = {one.arm: one for one in (smallest, full)}
        return Weighed(
            parts=(_weigh_steps(slow, fast, margins),),
            used=tuple(used.values()),
            details=(*details, *grid_sizes(used)),
            withheld=_unseen(smallest.arm.label, slow),
        )

    question = QUESTION.format(rank=decisive_rank(outcomes), margin=margins.steps_ratio)
    return judged("C9b", question, outcomes, rule, model=model)


def threshold(full: Tuned) -> float:
    """The accuracy whose first step counts, by full fine-tuning at its best rate.

    Raises:
        Refused: it gains too little.
    """
    start, end = float(full.start.mean()), float(full.final.mean())
    if end - start < LEAST_GAIN:
        raise Refused(
            f"full fine-tuning gains {end - start:.3f} of accuracy, which leaves no threshold to reach",
            f"a task, or steps enough, on which it gains {LEAST_GAIN:g}",
        )
    return start + THRESHOLD * (end - start)


def _weigh_steps(lora: Reached, full: Reached, margins: Margins) -> Evidence:
    """Both tests, each with the censored seeds where they are worst for it; the interval reaches over both."""
    error = math.hypot(lora.log_error, full.log_error)

    def against(lora_beyond: float, full_beyond: float) -> Evidence:
        ratios = lora.log_steps(beyond=lora_beyond) - full.log_steps(beyond=full_beyond)
        return weigh("", ratios, -math.inf, math.log(margins.steps_ratio), margins=margins, shared_error=error)

    slowest, fastest = against(BEYOND, 1.0), against(1.0, BEYOND)
    merged = replace(
        slowest,
        estimate=(slowest.estimate + fastest.estimate) / 2,
        interval=(fastest.interval[0], slowest.interval[1]),
        p_outside=fastest.p_outside,
    )
    # Every ratio is above 0: the band stays open to that side.
    return replace(exponentiated(merged, "steps to the threshold, LoRA's over FullFT's"), low=-math.inf)


def _of_arm(label: str, reached: Reached) -> tuple[tuple[str, float], ...]:
    """Geometric mean, and how many seeds are no part of it as seen."""
    return (
        (f"steps of {label} to the threshold", math.exp(float(reached.log_steps(beyond=1.0).mean()))),
        (f"seeds of {label} that never reach it", float(reached.num_censored)),
    )


def _unseen(label: str, lora: Reached) -> tuple[str, str] | None:
    if lora.num_censored <= MOST_CENSORED * len(lora.steps):
        return None
    return f"{lora.num_censored} of {len(lora.steps)} seeds of {label} never reach the threshold", "longer runs"
