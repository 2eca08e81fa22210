"""One question with its finished cells, and what every one of its figures needs: arms, their names, their styles."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lowregret.report.curves import Style, full_style, rank_style
from lowregret.specs import Arm, QuestionSpec
from lowregret.studies.claims.arms import ALPHA
from lowregret.studies.claims.c8_batch import EQUAL_STEPS
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Outcome
from lowregret.studies.surface import Surface, surfaces

MOST_ARMS = 12
"""Lines of one chart whose colours and dashes a reader tells apart."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question and what became of it.

    >>> sorted(Asked.__dataclass_fields__)
    ['first_pass_bits', 'key', 'outcomes', 'question']
    """

    key: str
    """Begins the names of the question's figures."""
    question: QuestionSpec
    outcomes: tuple[Outcome, ...]
    first_pass_bits: float | None = None
    """Upper bound of the information in the training data (`information.first_pass_bits`); None where unknown."""

    @cached_property
    def margins(self) -> Margins:
        """Those that the findings were judged by."""
        return Margins.of(self.question.margins)

    @cached_property
    def surfaces(self) -> Mapping[Arm, Surface]:
        """Final losses of each arm as a table."""
        return surfaces(self.outcomes)

    @cached_property
    def shown(self) -> tuple[Arm, ...]:
        """The arms whose curves are drawn, adapters by rank: those that matter where all would be too many.

        Curves of equal steps are cut off and cross the others; the gap is what they are for.
        """
        arms = tuple(arm for arm in by_arm(self.outcomes) if arm.variant != EQUAL_STEPS)
        return arms if len(arms) <= MOST_ARMS else tuple(_that_matter(arms))

    @cached_property
    def hidden(self) -> str:
        """What the curves leave out, as a sentence; empty where they show every arm."""
        number = len({outcome.arm for outcome in self.outcomes})
        if len(self.shown) == number:
            return ""
        return f" Of {number} arms {len(self.shown)} are drawn, without controls and at the greatest run length."

    @cached_property
    def names(self) -> dict[Arm, str]:
        """Labels of the arms that are drawn."""
        return arm_names(self.shown)

    @cached_property
    def styles(self) -> dict[Arm, Style]:
        """Looks of the arms that are drawn; the same in every figure of the question."""
        return arm_styles(self.shown)


def _that_matter(arms: Sequence[Arm]) -> Iterable[Arm]:
    """Without controls, at one alpha, in the longest runs of each batch size and base."""
    alphas = {arm.alpha for arm in arms if arm.method == "lora"}
    alpha = ALPHA if ALPHA in alphas else min(alphas, default=ALPHA)
    plain = [arm for arm in arms if not arm.variant and (arm.method == "full" or arm.alpha == alpha)] or arms
    longest: dict[tuple[int, int], int] = defaultdict(int)
    for arm in plain:
        longest[arm.width, arm.batch_size] = max(longest[arm.width, arm.batch_size], arm.steps)
    return (arm for arm in plain if arm.steps == longest[arm.width, arm.batch_size])


def arm_styles(arms: Sequence[Arm]) -> dict[Arm, Style]:
    """Colour by layers where they differ, else by rank, else by width; dash by what else differs."""
    adapters = [arm for arm in arms if arm.rank is not None]
    shade = _shade(adapters)
    shades = sorted({shade(arm) for arm in adapters})
    places: dict[float | None, int] = defaultdict(int)
    styles: dict[Arm, Style] = {}
    for arm in dict.fromkeys(arms):
        group = None if arm.rank is None else shade(arm)
        place = places[group]
        places[group] += 1
        styles[arm] = full_style(place) if group is None else rank_style(shades.index(group), len(shades), place)
    return styles


def _shade(adapters: Sequence[Arm]) -> Callable[[Arm], float]:
    """What colours go by, as a number."""
    layers = sorted({arm.targets for arm in adapters})
    if len(layers) > 1:
        return lambda arm: layers.index(arm.targets)
    if len({arm.rank for arm in adapters}) > 1:
        return lambda arm: arm.rank or 0
    return lambda arm: arm.width


def arm_names(arms: Sequence[Arm]) -> dict[Arm, str]:
    """Labels that tell the arms of a question apart: batch size, length and width join where they differ."""
    known = list(dict.fromkeys(arms))
    names = {arm: arm.label for arm in known}
    # A control that is named needs no alpha beside its name.
    brief = {arm: replace(arm, alpha=ALPHA).label if arm.variant else arm.label for arm in known}
    if len(set(brief.values())) == len(set(names.values())):
        names = brief
    for field, text in (("batch_size", "B"), ("width", "d"), ("steps", "steps ")):
        if len(set(names.values())) < len(known) and len({getattr(arm, field) for arm in known}) > 1:
            names = {arm: f"{name} {text}{getattr(arm, field)}" for arm, name in names.items()}
    return names


def by_arm(outcomes: Sequence[Outcome]) -> dict[Arm, list[Outcome]]:
    """The outcomes of each arm: adapters by rank, full fine-tuning last; whatever was finished first."""
    groups: dict[Arm, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.arm, []).append(outcome)
    return {arm: groups[arm] for arm in sorted(groups, key=_order)}


def _order(arm: Arm) -> tuple[object, ...]:
    rank = math.inf if arm.rank is None else arm.rank
    return (rank, arm.targets, arm.variant, arm.alpha, arm.width, arm.batch_size, arm.steps)


def by_seed(outcomes: Iterable[Outcome]) -> dict[int, list[Outcome]]:
    """The outcomes of each seed, in order."""
    groups: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.seed, []).append(outcome)
    return groups
