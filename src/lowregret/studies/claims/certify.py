"""Certify: does rank R lose anything against full fine-tuning on this model and data, and how much?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowregret.studies.claims.arms import Found, by_rank, chosen, only, primary_full, primary_lora
from lowregret.studies.estimators import grid_sizes, tuned_differences
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.surface import Refused, Surface, aligned, surfaces
from lowregret.studies.verdicts import Weighed, judged, weigh

QUESTION = "Does rank {rank} lose less than {margin:g} nats a token against full fine-tuning?"


def certify(
    outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "", rank: int | None = None
) -> Finding:
    """The regret of a rank is below the margin (science.md, section 4: parity within `parity`).

    Regret is the tuned test loss of LoRA minus that of FullFT, paired by seed, each at the rate that validation chose.

    Rule: the upper half of TOST, a one-sided t test of regret against `parity` (5 %): LoRA that beats FullFT loses
    nothing. Its mirror image contradicts. Whether the two are equal on both sides stands in the details as a p-value.

    Args:
        outcomes: LoRA and FullFT cells of one base and data set.
        margins: the equivalence margin and the level.
        model: name for the finding.
        rank: which arm, where there are several; the largest if None.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        found = aligned(_pair(surfaces(outcomes), rank), margins.least_seeds)
        (_, lora), (_, full) = found.items()
        regret = tuned_differences(lora, full)
        quantity = f"regret of rank {lora.arm.rank}: test NLL minus FullFT's, nats a token"
        part = weigh(quantity, regret, -math.inf, margins.parity, margins=margins)
        equal = weigh("", regret, -margins.parity, margins.parity, margins=margins)
        details = (
            ("p of equality within the margin on both sides", equal.p_inside),
            ("parameters of LoRA over FullFT's", lora.arm.params / full.arm.params),
        )
        return Weighed(parts=(part,), used=(lora, full), details=(*details, *grid_sizes(found)))

    ranks = [outcome.arm.rank for outcome in outcomes if primary_lora(outcome.arm)]
    shown = rank if rank is not None else max((r for r in ranks if r is not None), default="R")
    return judged("certify", QUESTION.format(rank=shown, margin=margins.parity), outcomes, rule, model=model)


def _pair(found: Found, rank: int | None) -> dict[Arm, Surface]:
    adapters = by_rank(found)
    wanted = [arm for arm in adapters if rank is None or arm.rank == rank]
    if not wanted:
        raise Refused(f"no LoRA arm {'' if rank is None else f'of rank {rank}'}".rstrip(), "such an arm")
    _, full = only(chosen(found, primary_full), "FullFT")
    return {wanted[-1]: adapters[wanted[-1]], full.arm: full}
