"""Markdown tables of a fidelity study for docs/results.md and docs/fidelity.md; `scripts/results.py` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

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
    if not rows:
        return "-"
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


def _same_but_variant(arm: Arm, other: Arm) -> bool:
    return bool(other.variant) and (arm.method, arm.rank, arm.steps) == (other.method, other.rank, other.steps)
