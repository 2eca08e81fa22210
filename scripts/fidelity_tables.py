"""Markdown tables of a fidelity study for docs/results.md and docs/fidelity.md; `scripts/results.py` writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from lowregret.specs.fidelity import fidelity_verdict
from lowregret.store.study import ForwardFidelity
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.swallowing import arithmetics


def forward_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Forward fidelity of every arithmetic by arm, step and rate, means over seeds; bold where it fails."""
    lines: list[str] = []
    for method in ("lora", "full"):
        measured = [one for one in outcomes if one.arm.method == method and one.fidelity]
        if not measured:
            continue
        columns = arithmetics(measured)
        lines += [
            "",
            f"| arm | steps | rate | fp32 drop | {' | '.join(columns)} |",
            "|---|" + "---|" * (3 + len(columns)),
        ]
        places = sorted({(one.arm.label, row.step, one.lr) for one in measured for row in one.fidelity})
        for label, step, lr in places:
            rows = [
                r for one in measured if (one.arm.label, one.lr) == (label, lr) for r in one.fidelity if r.step == step
            ]
            cells = [_cell([row for row in rows if row.arithmetic == name]) for name in columns]
            lines.append(
                f"| {label} | {step} | {lr:.3g} | {fmean(r.fp32_drop for r in rows):.4f} | {' | '.join(cells)} |"
            )
    return lines


def _cell(rows: Sequence[ForwardFidelity]) -> str:
    if not rows or fmean(row.fp32_drop for row in rows) <= 0:
        return "-"  # no drop to take a share of
    estimate, low, high = (fmean(getattr(row, name) for row in rows) for name in ("fidelity", "low", "high"))
    moved = [row.moved for row in rows if row.moved is not None]
    text = f"{estimate:.2f} ({low:.2f} to {high:.2f})" + (f", {fmean(moved):.1%} moved" if moved else "")
    return f"**{text}**" if fidelity_verdict(estimate, low, high) == "fails" else text


def drops_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Held-out loss after training in each arithmetic, by rate: what the runs themselves ended with."""
    lines = [
        "",
        "| arm | steps | rate | seeds | validation, faithful | usual | test, faithful | usual |",
        "|---|" + "---|" * 7,
    ]
    faithful: dict[tuple[Arm, float], list[Outcome]] = {}
    for one in outcomes:
        faithful.setdefault((one.arm, one.lr), []).append(one)
    for (arm, lr), own in sorted(faithful.items(), key=lambda item: (item[0][0].label, item[0][1])):
        if arm.variant:
            continue
        usual = [one for one in outcomes if one.lr == lr and _same_but_variant(arm, one.arm)]
        if usual:
            cells = [
                f"{fmean(values):.4f}"
                for values in (
                    [one.final_validation for one in own],
                    [one.final_validation for one in usual],
                    [one.final_test for one in own],
                    [one.final_test for one in usual],
                )
            ]
            lines.append(f"| {arm.label} | {arm.steps} | {lr:.3g} | {len(own)} | {' | '.join(cells)} |")
    return lines


def vertices_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Where validation loss is least in either arithmetic, seed by seed: the vertex of the parabola through the best
    learning rate and its two neighbours, in log LR. An answer where there are too few rates for the rules of C13c to
    C13e, which fit five or more; it has no interval and gives no verdict. Seeds whose best rate has no neighbour on one
    side are left out.
    """
    lines = ["", "| arm | seed | faithful | usual | decades higher in usual |", "|---|---|---|---|---|"]
    places = sorted({(one.arm.label, one.seed) for one in outcomes if not one.arm.variant})
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for label, seed in places:
        own = [one for one in outcomes if one.seed == seed and not one.diverged]
        arm = next(one.arm for one in own if one.arm.label == label)
        faithful = _vertex([one for one in own if one.arm == arm])
        usual = _vertex([one for one in own if _same_but_variant(arm, one.arm)])
        if faithful is not None and usual is not None:
            found.setdefault(label, {})[seed] = (faithful, usual)
            lines.append(f"| {label} | {seed} | {10**faithful:.2e} | {10**usual:.2e} | {usual - faithful:+.2f} |")
    if not found:
        return []
    means = [
        f"{label} {fmean(usual - faithful for faithful, usual in own.values()):+.2f}" for label, own in found.items()
    ]
    lines += ["", f"Mean shift in decades: {', '.join(means)}."]
    full = found.pop("full", {})
    for label, own in found.items():
        if seeds := own.keys() & full.keys():
            ratios = [10 ** fmean(own[seed][k] - full[seed][k] for seed in seeds) for k in (0, 1)]
            lines.append(
                f"Ratio of {label}'s to full fine-tuning's, geometric mean over the {len(seeds)} seeds that have both: "
                f"{ratios[0]:.1f} in faithful, {ratios[1]:.1f} in usual arithmetic."
            )
    return lines


def _vertex(outcomes: Sequence[Outcome]) -> float | None:
    """Log10 of the rate; None where the best one has no neighbour on one side."""
    curve = sorted((math.log10(one.lr), one.final_validation) for one in outcomes)
    best = min(range(len(curve)), key=lambda place: curve[place][1], default=0)
    if not 0 < best < len(curve) - 1:
        return None
    rates, losses = zip(*curve[best - 1 : best + 2], strict=True)
    square, linear, _ = np.polyfit(rates, losses, 2)
    return float(-linear / (2 * square))


def _same_but_variant(arm: Arm, other: Arm) -> bool:
    return bool(other.variant) and (arm.method, arm.rank, arm.steps) == (other.method, other.rank, other.steps)
