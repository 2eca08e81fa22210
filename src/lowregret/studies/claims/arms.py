"""Which arms of a study a claim compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lowregret.specs import AdapterSpec
from lowregret.studies.outcome import Arm
from lowregret.studies.surface import Refused, Surface

Found = Mapping[Arm, Surface]

ALPHA = AdapterSpec(rank=1).alpha
"""The default at every rank, which is that of the primary contrasts."""


def chosen(found: Found, wanted: Callable[[Arm], bool]) -> dict[Arm, Surface]:
    """The arms that a predicate picks, smallest rank first."""
    picked = [arm for arm in found if wanted(arm)]
    return {arm: found[arm] for arm in sorted(picked, key=lambda arm: arm.rank or 0)}


def primary_lora(arm: Arm) -> bool:
    """LoRA on all matrices at the default alpha, no control."""
    return arm.method == "lora" and arm.alpha == ALPHA and arm.targets == ("all",) and not arm.variant


def primary_full(arm: Arm) -> bool:
    """Full fine-tuning, no control."""
    return arm.method == "full" and not arm.variant


def by_rank(found: Found) -> dict[Arm, Surface]:
    """Primary LoRA arms of different rank, all else equal.

    Raises:
        Refused: arms of one rank differ in something else: they belong to different questions.
    """
    arms = chosen(found, primary_lora)
    if len({arm.rank for arm in arms}) < len(arms):
        raise Refused("arms of one rank differ in batch, steps or base", "one question for each batch, length and base")
    return arms


def only(found: Found, what: str) -> tuple[Arm, Surface]:
    """The one arm that a rule compares with.

    Args:
        found: arms that would do.
        what: their name in the message.

    Raises:
        Refused: there is none, or more than one.
    """
    if len(found) != 1:
        raise Refused(f"{len(found)} arms of {what} where the rule compares one", f"one arm of {what}")
    return next(iter(found.items()))
