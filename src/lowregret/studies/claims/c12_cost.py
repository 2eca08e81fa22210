"""C12: a step of LoRA takes about two thirds of FullFT's arithmetic (paper; 2/3 + 2r/N for a square matrix)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lowregret.studies.claims.arms import by_rank, chosen, only, primary_full
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Outcome
from lowregret.studies.students_t import Floats, t_interval
from lowregret.studies.surface import Refused, Surface, surfaces

QUESTION = "Does rank {rank} take about two thirds of FullFT's arithmetic?"


def c12(
    outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "", rank: int | None = None
) -> Finding:
    """Counted multiply-adds of LoRA over FullFT's are at most `multiply_adds` (science.md, C12).

    Counting is exact, so the verdict has no interval and no error. The measured ratio of training times, paired by
    seed, stands in the details with its 95 % t interval on the logarithm: it says what the machine makes of it.

    Args:
        outcomes: cells with `multiply_adds`, and `seconds` where times were measured.
        margins: the largest ratio that is `about 2/3`.
        model: name for the finding.
        rank: which arm, where there are several; the largest if None.
    """
    margins = margins or Margins()
    shown = rank if rank is not None else max((o.arm.rank for o in outcomes if o.arm.rank is not None), default="R")
    question = QUESTION.format(rank=shown)
    try:
        lora, full = _pair(outcomes, rank)
        ratio = _counted(lora) / _counted(full)
    except Refused as refused:
        return _finding(question, outcomes, model, reason=refused.reason, settles=refused.settles, margin=None)
    fewer = ratio <= margins.multiply_adds
    return _finding(
        question,
        (*lora.outcomes, *full.outcomes),
        model,
        estimate=ratio,
        margin=margins.multiply_adds,
        verdict="supported" if fewer else "contradicted",
        reason=f"counted exactly: {ratio:.3f}, {'at most' if fewer else 'more than'} {margins.multiply_adds:g}",
        details=_times(lora, full),
    )


def _finding(question: str, outcomes: Sequence[Outcome], model: str, **fields: object) -> Finding:
    settings: dict[str, object] = {
        "claim": "C12",
        "question": question,
        "quantity": "multiply-adds of LoRA over FullFT's",
        "estimate": None,
        "interval": None,
        "verdict": "inconclusive",
        "seeds": len({outcome.seed for outcome in outcomes}),
        "model": model,
        "cells": tuple(outcome.cell for outcome in outcomes),
    }
    return Finding(**{**settings, **fields})  # pyright: ignore[reportArgumentType]


def _pair(outcomes: Sequence[Outcome], rank: int | None) -> tuple[Surface, Surface]:
    found = surfaces(outcomes)
    adapters = [surface for arm, surface in by_rank(found).items() if rank is None or arm.rank == rank]
    if not adapters:
        raise Refused("no LoRA arm", "such an arm")
    _, full = only(chosen(found, primary_full), "FullFT")
    return adapters[-1], full


def _counted(surface: Surface) -> float:
    counts = {outcome.multiply_adds for outcome in surface.outcomes}
    if len(counts) != 1 or None in counts:
        raise Refused(f"the arithmetic of {surface.arm.label} was not counted", "a study of cost")
    return float(counts.pop() or 0.0) / surface.arm.steps


def _times(lora: Surface, full: Surface) -> tuple[tuple[str, float], ...]:
    seeds = sorted(set(lora.seeds) & set(full.seeds))
    ours, theirs = _seconds(lora, seeds), _seconds(full, seeds)
    if ours is None or theirs is None or not seeds:
        return ()
    logs = np.log(ours / theirs)
    details = [("seconds of LoRA over FullFT's", math.exp(float(logs.mean())))]
    if len(seeds) > 1:
        low, high = t_interval(logs)
        details += [("its interval, low", math.exp(low)), ("its interval, high", math.exp(high))]
    return tuple(details)


def _seconds(surface: Surface, seeds: Sequence[int]) -> Floats | None:
    """A step's mean time over learning rates, per seed; None where it was not measured."""
    times = {seed: [o.seconds for o in surface.outcomes if o.seed == seed and not o.diverged] for seed in seeds}
    means: list[float] = []
    for own in times.values():
        measured = [seconds for seconds in own if seconds]
        if not measured or len(measured) < len(own):
            return None
        means.append(sum(measured) / len(measured) / surface.arm.steps)
    return np.array(means)
