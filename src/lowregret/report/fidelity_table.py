"""The table of a fidelity question: forward fidelity of every bf16 arithmetic by arm, step and learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import fmean

from lowregret.report.numbers import MISSING, learning_rate
from lowregret.report.protocols.asked import arm_names, by_arm
from lowregret.report.study_tables import html_table
from lowregret.specs.fidelity import LEAST_LOW, NEAR_ONE, fidelity_verdict
from lowregret.store.study import ForwardFidelity
from lowregret.studies.outcome import Outcome
from lowregret.studies.swallowing import arithmetics


def fidelity_table(outcomes: Sequence[Outcome]) -> str:
    """A table a method: a line for each faithful arm, step and rate, a column for each arithmetic."""
    tables = [_table([one for one in outcomes if one.arm.method == method]) for method in ("lora", "full")]
    shown = "".join(tables)
    if not shown:
        return ""
    return (
        f"{shown}<p class=note>Forward fidelity: the share of the fp32 loss drop that an arithmetic lets act, for the "
        "same fp32 masters (of the arm that trains in faithful arithmetic) on the same validation examples, each "
        "against its own loss before training. Mean over seeds of the estimates and of the ends of their 95 % "
        f"bootstrap intervals. It passes where the interval holds 1 and begins at {LEAST_LOW:g} or above, or the "
        f"estimate lies in {NEAR_ONE[0]:g} to {NEAR_ONE[1]:g}; what fails is set in bold. In brackets: share of the "
        "bf16 weights that differ from the start's.</p>"
    )


def _table(outcomes: Sequence[Outcome]) -> str:
    measured = [outcome for outcome in outcomes if outcome.fidelity]
    if not measured:
        return ""
    names, columns = arm_names([outcome.arm for outcome in outcomes]), arithmetics(measured)
    rows: list[str] = []
    for arm, own in by_arm(measured).items():
        for step in sorted({row.step for outcome in own for row in outcome.fidelity}):
            for lr in sorted({outcome.lr for outcome in own}):
                found = [row for one in own if one.lr == lr for row in one.fidelity if row.step == step]
                if found:
                    rows.append(_row((names[arm], str(step), learning_rate(lr)), found, columns))
    head = ("arm", "step", "learning rate", "fp32 drop, nats", *columns)
    return html_table(head, "".join(rows), numbers_from=1)


def _row(place: tuple[str, ...], found: Sequence[ForwardFidelity], columns: Sequence[str]) -> str:
    drop = fmean(row.fp32_drop for row in found)
    cells = [f"{drop:.4f}", *(_cell([row for row in found if row.arithmetic == name]) for name in columns)]
    head = f"<th scope=row>{escape(place[0])}</th>"
    return f"<tr>{head}{''.join(f'<td class=number>{text}</td>' for text in (*place[1:], *cells))}</tr>"


def _cell(rows: Sequence[ForwardFidelity]) -> str:
    if not rows:
        return MISSING
    estimate, low, high = (fmean(getattr(row, name) for row in rows) for name in ("fidelity", "low", "high"))
    moved = [row.moved for row in rows if row.moved is not None]
    share = f" [{fmean(moved):.2g}]" if moved else ""
    text = f"{estimate:.3f} ({low:.3f} to {high:.3f}){share}"
    return f"<b>{text}</b>" if fidelity_verdict(estimate, low, high) == "fails" else text
