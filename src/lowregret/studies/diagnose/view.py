"""What rules see of a run: its plan and its logs as plain frozen values. Rules never read a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lowregret.specs import AdapterSpec, FullSpec, ResolvedPlan, RunSpec, SlotSpec
from lowregret.specs.shape import ModelShape
from lowregret.store import EvalRow, MetricRow, RunDirectory
from lowregret.studies.margins import Margins

Series = tuple[tuple[int, float], ...]
"""(step, loss), ascending in step."""

MARGIN = Margins().parity
"""Nats a token under which two held-out losses count as equal."""


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """What became of the rows, from `data.json`; the fields are those of `data.tokenise.DataReport`.

    >>> DataCounts(read=10, kept=8, empty=0, overlong=2, truncated=0, masked=0, turns_without_loss=0, test_overlaps=0,
    ...     train=6, validation=1, test=1).share(2)
    0.2
    """

    read: int
    kept: int
    empty: int
    overlong: int
    truncated: int
    masked: int
    turns_without_loss: int
    test_overlaps: int
    train: int
    validation: int
    test: int

    @classmethod
    def of(cls, report: Mapping[str, Any] | None) -> DataCounts | None:
        """From the run directory's report; None where it has none, or one that lacks a count."""
        names = [field.name for field in fields(cls)]
        if report is None or any(not isinstance(report.get(name), int) for name in names):
            return None
        return cls(**{name: report[name] for name in names})

    def share(self, rows: int) -> float:
        """Of the rows that were read."""
        return rows / max(1, self.read)


@dataclass(frozen=True, kw_only=True)
class RunView:
    """One run as the rules see it.

    >>> sorted(RunView.__dataclass_fields__)
    ['data', 'evals', 'metrics', 'plan', 'retired', 'shape', 'surviving']
    """

    plan: ResolvedPlan
    metrics: tuple[MetricRow, ...]
    evals: tuple[EvalRow, ...]
    data: DataCounts | None
    retired: frozenset[str]
    """Slots that stopped because their loss or weights were not finite."""
    shape: ModelShape | None
    """Of the base; None where the base is not at hand."""
    surviving: tuple[tuple[str, float], ...] = ()
    """Share of each slot's update that is left when it is merged into bf16 by rounding to nearest, where measured."""

    @property
    def spec(self) -> RunSpec:
        """With every rate filled in."""
        return self.plan.spec

    @property
    def adapters(self) -> tuple[tuple[SlotSpec, AdapterSpec], ...]:
        """LoRA slots with their adapters."""
        return tuple((slot, slot.weights) for slot in self.spec.slots if isinstance(slot.weights, AdapterSpec))

    @property
    def full(self) -> tuple[tuple[SlotSpec, FullSpec], ...]:
        """Slots of full fine-tuning with their settings."""
        return tuple((slot, slot.weights) for slot in self.spec.slots if isinstance(slot.weights, FullSpec))

    @property
    def last_step(self) -> int:
        """Last step in the logs."""
        return max((row.step for row in self.metrics), default=0)

    @property
    def epochs(self) -> float:
        """Passes over the training split so far."""
        return self.last_step * self.spec.train.batch_size / max(1, self.plan.facts.num_examples)

    def held_out(self, slot: str, split: str = "validation") -> Series:
        """Held-out losses of a slot, from before the first step on; those that are no numbers are left out."""
        own = {row.step: row.nll for row in self.evals if row.split == split and row.slot == slot}
        base = {row.step: row.nll for row in self.evals if row.split == split and row.slot == "base"}
        return tuple((step, nll) for step, nll in sorted((base | own).items()) if math.isfinite(nll))

    def training(self, slot: str) -> Series:
        """Training losses of a slot; those that are no numbers are left out."""
        return tuple((row.step, row.loss) for row in self.metrics if row.slot == slot and math.isfinite(row.loss))

    def grad_norms(self, slot: str) -> Series:
        """Gradient norms of a slot, where they were logged."""
        own = ((row.step, row.grad_norm) for row in self.metrics if row.slot == slot)
        return tuple((step, norm) for step, norm in own if norm is not None and math.isfinite(norm))

    def finals(self, split: str = "validation") -> dict[str, float]:
        """Loss of every slot that lived at the last step at which all of them were measured; empty before training."""
        series = {s.name: dict(self.held_out(s.name, split)) for s in self.spec.slots if s.name not in self.retired}
        if not series:
            return {}
        common = set[int].intersection(*(set(losses) for losses in series.values())) - {0}
        return {name: losses[max(common)] for name, losses in series.items()} if common else {}


def view_of(
    run: RunDirectory, *, shape: ModelShape | None = None, surviving: Mapping[str, float] | None = None
) -> RunView:
    """Read a run directory; an unfinished or running one is seen as far as it is logged.

    Args:
        shape: of the base, where it is at hand; rules that need it are left out otherwise.
        surviving: see `RunView.surviving`.
    """
    metrics = run.read_metrics()
    return RunView(
        plan=run.plan,
        metrics=metrics,
        evals=run.read_evals(),
        data=DataCounts.of(run.data_report),
        retired=_retired(metrics, run.summary),
        shape=shape,
        surviving=tuple((surviving or {}).items()),
    )


def _retired(metrics: Sequence[MetricRow], summary: Mapping[str, Any] | None) -> frozenset[str]:
    """By the summary; before there is one, by a loss that is no number, or no line for the last two steps.

    One step is too few: a kill between the lines of a step leaves it for some slots only. A slot that was stopped as
    dominated ended by plan and did not fail.
    """
    slots: Mapping[str, Mapping[str, Any]] = (summary or {}).get("slots", {})
    last = {row.slot: row.step for row in metrics}
    silent = {slot for slot, step in last.items() if step < max(last.values()) - 1}
    lost = {row.slot for row in metrics if not math.isfinite(row.loss)}
    stopped = {name for name, slot in slots.items() if slot.get("stopped")}
    return frozenset((silent | lost | {name for name, slot in slots.items() if slot.get("diverged")}) - stopped)
