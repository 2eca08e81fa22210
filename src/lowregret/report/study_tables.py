"""The tables of a study's page as HTML text: findings, exact comparisons, cost, every cell with its spec.

Guarantee: whatever comes from a spec, a model or a data set is escaped.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lowregret.report.numbers import count, learning_rate, nats
from lowregret.report.protocols.asked import arm_names, by_arm, by_seed
from lowregret.specs import Arm
from lowregret.specs.codec import to_toml
from lowregret.store.study import StudyDirectory
from lowregret.studies.claims import c12
from lowregret.studies.claims.c1_invariance import CORRECTED
from lowregret.studies.outcome import Outcome

MOODS = {"supported": "good", "contradicted": "bad", "inconclusive": "open"}
"""Verdicts in the order of the header, with the class of their colour."""
COLUMNS = ("claim", "question", "verdict", "estimate", "interval", "margin", "seeds")


def findings_table(findings: Sequence[Mapping[str, Any]]) -> str:
    """A line a finding; under it why, what would settle it, and further numbers to unfold."""
    if not findings:
        return ""
    body = "".join(_finding(finding) for finding in findings)
    return (
        f"<section><h2>Findings</h2>{html_table(COLUMNS, body, style='findings')}"
        "<p class=note>Margins were set in the study's spec before it ran. A claim is supported or contradicted only "
        "when its interval says so at the level of its rule, after Holm's correction over all claims; else it is "
        "inconclusive.</p></section>"
    )


def _finding(finding: Mapping[str, Any]) -> str:
    estimate = "-" if finding.get("estimate") is None else f"{finding['estimate']:.4g}"
    verdict, settles = finding["verdict"], finding["settles"]
    on = f"on {finding['model']}" if finding["model"] else ""
    note = ", ".join(filter(None, (finding["quantity"], on)))
    reason: str = finding["reason"]
    why = f"{reason[:1].upper()}{reason[1:]}." + (f" To settle it: {settles}." if settles else "")
    details = "".join(
        f"<dt>{escape(name)}</dt><dd>{value:.4g}</dd>" for name, value in (finding.get("details") or {}).items()
    )
    if finding.get("p_value") is not None:
        details = f"<dt>p before Holm's correction</dt><dd>{finding['p_value']:.3g}</dd>{details}"
    more = f"<details><summary>Further numbers</summary><dl>{details}</dl></details>" if details else ""
    return (
        f"<tr class=finding><th scope=row>{escape(finding['claim'])}</th>"
        f"<td>{escape(finding['question'])}<br><span class=note>{escape(note)}</span></td>"
        f"<td><span class='tag {MOODS[verdict]}'>{escape(verdict)}</span></td>"
        f"<td class=number>{estimate}</td><td class=number>{_pair(finding.get('interval'))}</td>"
        f"<td class=number>{_pair(finding.get('margin'))}</td><td class=number>{finding['seeds']}</td></tr>"
        f"<tr class=why><td></td><td colspan={len(COLUMNS) - 1}>{escape(why)}{more}</td></tr>"
    )


def invariance_table(outcomes: Sequence[Outcome]) -> str:
    """How far each transformed run's held-out losses lie from those of the run that it should repeat (C1)."""
    cells = {(seed, *_pair_and_kind(one.arm)): one for seed, own in by_seed(outcomes).items() for one in own}
    first = next((pair for _, pair, _ in cells), "")
    differences: dict[str, dict[str, float]] = defaultdict(dict)
    for (seed, pair, kind), outcome in cells.items():
        # Uncorrected runs are to differ from the run with the usual eps, which the corrected ones are to repeat.
        reference = cells.get((seed, first, kind if (seed, first, kind) in cells else "corrected"))
        if pair != first and reference is not None:
            differences[pair][kind] = max(_difference(reference, outcome), differences[pair].get(kind, 0.0))
    if not differences:
        return ""
    kinds = list(dict.fromkeys(kind for own in differences.values() for kind in own))
    rows = "".join(
        f"<tr><th scope=row>{escape(pair)}</th>"
        + "".join(f"<td class=number>{_exact(own.get(kind))}</td>" for kind in kinds)
        + "</tr>"
        for pair, own in differences.items()
    )
    return (
        f"{html_table(('factors of A and B', *kinds), rows, numbers_from=1)}"
        "<p class=note>Largest relative difference of the held-out losses, over all evaluations, from the run that it "
        f"should repeat ({escape(first)}). With eps 0 it must be 0, corrected at most {CORRECTED:g}, uncorrected more. "
        "The finding compares the trained products B A as well.</p>"
    )


def _pair_and_kind(arm: Arm) -> tuple[str, str]:
    """What the arm's variant says: the factors, and how eps and decay were treated."""
    pair, _, kind = arm.variant.rpartition(", ")
    return pair, kind


def _difference(one: Outcome, other: Outcome) -> float:
    if one.diverged or other.diverged:
        return math.inf
    pairs = zip((*one.validation, *one.test), (*other.validation, *other.test), strict=True)
    return max(abs(a - b) / abs(a) for a, b in pairs)


def _exact(value: float | None) -> str:
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.2g}"


def cost_table(outcomes: Sequence[Outcome]) -> str:
    """Counted arithmetic of every arm beside its measured time, and LoRA's share of full fine-tuning's."""
    names = arm_names([outcome.arm for outcome in outcomes])
    rows: list[str] = []
    for arm, own in by_arm(outcomes).items():
        timed = [one.seconds / arm.steps for one in own if one.seconds and not one.diverged]
        adds = count(round(arm.multiply_adds)) if arm.multiply_adds else "-"
        took = f"{sum(timed) / len(timed):.3g} s" if timed else "-"
        ratio = ("1", "1") if arm.method == "full" else _ratios(outcomes, arm)
        rows.append(
            f"<tr><th scope=row>{escape(names[arm])}</th><td class=number>{count(arm.params)}</td>"
            f"<td class=number>{adds}</td><td class=number>{ratio[0]}</td>"
            f"<td class=number>{took}</td><td class=number>{ratio[1]}</td></tr>"
        )
    head = ("arm", "parameters", "multiply-adds a token", "over FullFT's", "time a step", "over FullFT's")
    return (
        f"{html_table(head, ''.join(rows), numbers_from=1)}"
        "<p class=note>Multiply-adds are counted and exact. Times are those of the machine that trained, "
        "a step's mean without evaluation; their ratio is paired by seed, with the 95 % interval.</p>"
    )


def _ratios(outcomes: Sequence[Outcome], arm: Arm) -> tuple[str, str]:
    """LoRA's arithmetic and time over full fine-tuning's, as the finding has them."""
    finding = c12(outcomes, rank=arm.rank)
    counted = "-" if finding.estimate is None else f"{finding.estimate:.3f}"
    values = [value for _, value in finding.details]
    if not values:
        return counted, "-"
    ends = f" ({values[1]:.3g} to {values[2]:.3g})" if len(values) > 2 else ""
    return counted, f"{values[0]:.3g}{ends}"


def cells_table(study: StudyDirectory, outcomes: Sequence[Outcome], *, measure: str = "test NLL") -> str:
    """Every cell of a question, and under each arm the spec that its cells share.

    Args:
        study: holds the specs.
        outcomes: of the question.
        measure: what the cells' series hold.
    """
    names = arm_names([outcome.arm for outcome in outcomes])
    rows: list[str] = []
    specs: list[str] = []
    for arm, own in by_arm(outcomes).items():
        ordered = [one for cells in by_seed(own).values() for one in sorted(cells, key=lambda cell: cell.lr)]
        rows += [_cell(names[arm], outcome) for outcome in ordered]
        spec = to_toml(study.cell_spec(ordered[0].cell))
        specs.append(
            f"<details><summary>{escape(names[arm])}: cells/{ordered[0].cell}/spec.toml</summary>"
            f"<pre>{escape(spec)}</pre></details>"
        )
    head = ("arm", "learning rate", "seed", f"final {measure}", "bits held", "parameters", "batch", "steps", "cell")
    table = html_table(head, "".join(rows), style="cells")
    return (
        f"<details><summary>Every cell ({len(outcomes)})</summary>{table}</details>"
        "<details><summary>The spec of every arm</summary><p class=note>One cell of each; the other cells of an arm "
        f"differ in learning rates and seeds alone.</p>{''.join(specs)}</details>"
    )


def _cell(name: str, outcome: Outcome) -> str:
    return (
        f"<tr><td>{escape(name)}</td><td class=number>{learning_rate(outcome.lr)}</td>"
        f"<td class=number>{outcome.seed}</td><td class=number>{became(outcome)}</td>"
        f"<td class=number>{'-' if outcome.stored_bits is None else count(round(outcome.stored_bits))}</td>"
        f"<td class=number>{count(outcome.arm.params)}</td><td class=number>{outcome.arm.batch_size}</td>"
        f"<td class=number>{outcome.arm.steps}</td><td><code>{escape(outcome.cell)}</code></td></tr>"
    )


def became(outcome: Outcome) -> str:
    """The final test loss (in RL, error rate) of a cell, or why it has none.

    >>> arm = Arm(method="full", params=1, batch_size=8, steps=1)
    >>> became(Outcome(cell="a", arm=arm, lr=1.0, seed=0, steps=(0,), validation=(1.0,), test=(1.0,), diverged=True,
    ...     stopped=True))
    'stopped early'
    """
    if outcome.stopped:
        return "stopped early"
    return "diverged" if outcome.diverged else nats(outcome.final_test)


def html_table(head: Sequence[str], body: str, *, style: str = "", numbers_from: int = 99) -> str:
    """A table whose body is HTML already; columns of numbers stand right."""
    cells = "".join(
        f"<th scope=col{' class=number' if place >= numbers_from else ''}>{escape(name)}</th>"
        for place, name in enumerate(head)
    )
    look = f" class={style}" if style else ""
    return f"<div class=scroll><table{look}><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"


def _pair(value: object) -> str:
    if isinstance(value, list | tuple):
        return " to ".join("-" if end is None else f"{end:.4g}" for end in value)  # pyright: ignore[reportUnknownVariableType]
    return "-" if value is None else f"{value:.4g}"
