"""All rules of one run, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lowregret.studies.diagnose import data, fit, rates, rounding
from lowregret.studies.diagnose.symptom import SEVERITIES, Rule, Symptom
from lowregret.studies.diagnose.view import RunView

NO_SHAPE = "the base model is not at hand"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found, and what was looked for.

    >>> Diagnosis(symptoms=(), checked=("diverged",), unchecked=()).serious
    False
    """

    symptoms: tuple[Symptom, ...]
    """Serious ones first."""
    checked: tuple[str, ...]
    """Rules that could be applied."""
    unchecked: tuple[tuple[str, str], ...]
    """Rules that could not, and what the run does not record."""

    @property
    def serious(self) -> bool:
        """Whether the result can't be used as it is."""
        return any(symptom.severity == "serious" for symptom in self.symptoms)


def _nothing(view: RunView) -> str | None:
    return None


def _curves(view: RunView) -> str | None:
    return None if view.finals() else "no held-out loss after training"


def _curves_and_shape(view: RunView) -> str | None:
    return _curves(view) or (NO_SHAPE if view.shape is None else None)


def _training(view: RunView) -> str | None:
    return None if view.metrics else "no training loss"


def _counts(view: RunView) -> str | None:
    return None if view.data is not None else "no counts of rows (data.json)"


def _merges(view: RunView) -> str | None:
    return None if view.surviving else "no adapter was written, or the base model is not at hand"


RULES: tuple[Rule, ...] = (
    Rule(name="diverged", looks_for="a loss that is no number", lacks=_training, find=rates.diverged),
    Rule(name="loss-rose", looks_for="losses that end above their start", lacks=_curves, find=rates.rose),
    Rule(name="unstable", looks_for="spikes of loss or gradient norm", lacks=_training, find=rates.unstable),
    Rule(
        name="lr-at-full-scale",
        looks_for="LoRA at full fine-tuning's learning rate",
        lacks=_curves_and_shape,
        find=rates.at_full_scale,
    ),
    Rule(
        name="lr-on-the-edge", looks_for="a best rate at the edge of the tried", lacks=_curves, find=rates.on_the_edge
    ),
    Rule(name="capacity-exhausted", looks_for="a rank that is full", lacks=_curves, find=fit.capacity_exhausted),
    Rule(name="overfitted", looks_for="validation rising, training falling", lacks=_curves, find=fit.overfitted),
    Rule(name="unfinished", looks_for="steps that are missing", lacks=_nothing, find=fit.unfinished),
    Rule(name="few-steps", looks_for="too few steps", lacks=_nothing, find=fit.few_steps),
    Rule(name="large-batch", looks_for="a batch too large for LoRA", lacks=_nothing, find=fit.large_batch),
    Rule(name="attention-only", looks_for="adapters on attention only", lacks=_nothing, find=fit.attention_only),
    Rule(name="alpha-tied-to-rank", looks_for="alpha in proportion to rank", lacks=_nothing, find=fit.tied_alpha),
    Rule(
        name="unembedding-left-out",
        looks_for="a vocabulary that the base does not expect",
        lacks=_curves,
        find=fit.unembedding_left_out,
    ),
    Rule(
        name="update-swallowed",
        looks_for="updates lost to rounding in training",
        lacks=_nothing,
        find=rounding.swallowed_in_training,
    ),
    Rule(
        name="merge-swallows",
        looks_for="updates that a merge to nearest loses",
        lacks=_merges,
        find=rounding.swallowed_by_merge,
    ),
    Rule(name="leaked-test-rows", looks_for="test prompts in training", lacks=_counts, find=data.leaked),
    Rule(name="splits-disagree", looks_for="held-out splits that disagree", lacks=_curves, find=data.splits_disagree),
    Rule(name="rows-dropped", looks_for="rows dropped or cut", lacks=_counts, find=data.rows_dropped),
    Rule(name="completions-masked", looks_for="few tokens with loss", lacks=_nothing, find=data.masked_away),
    Rule(name="test-too-small", looks_for="a lead that is noise", lacks=_curves, find=data.small_test_split),
)


def diagnose_run(view: RunView, rules: Sequence[Rule] = RULES) -> Diagnosis:
    """Apply every rule that the run records enough for."""
    reasons = [(rule, rule.lacks(view)) for rule in rules]
    found = [s for rule, reason in reasons if reason is None for s in rule.find(view)]
    return Diagnosis(
        symptoms=ordered(found),
        checked=tuple(rule.name for rule, reason in reasons if reason is None),
        unchecked=tuple((rule.name, reason) for rule, reason in reasons if reason is not None),
    )


def ordered(symptoms: Iterable[Symptom]) -> tuple[Symptom, ...]:
    """Serious ones first; those of one rule that have the same remedy become one line."""
    merged: dict[tuple[str, str, str], Symptom] = {}
    for symptom in symptoms:
        key = (symptom.rule, symptom.severity, symptom.remedy)
        if key in merged and symptom.where != merged[key].where:
            first = merged[key]
            seen = first.seen if first.seen.endswith("; likewise the others") else f"{first.seen}; likewise the others"
            merged[key] = replace(first, where=f"{first.where}, {symptom.where}", seen=seen)
        else:
            merged.setdefault((*key[:2], f"{key[2]}{symptom.seen}") if key in merged else key, symptom)
    return tuple(sorted(merged.values(), key=lambda symptom: SEVERITIES.index(symptom.severity)))
