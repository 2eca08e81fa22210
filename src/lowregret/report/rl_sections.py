"""The parts of `report.html` that only a run of RL has, under the guarantee of `sections`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lowregret.report.findings import Verdict
from lowregret.report.numbers import MISSING, count, learning_rate, share
from lowregret.report.rl_charts import BITS
from lowregret.report.rl_curves import Series
from lowregret.report.rl_findings import AccuracyFinding
from lowregret.report.sections import section, table
from lowregret.store.rows import RolloutRow


def accuracy_table(findings: Sequence[AccuracyFinding], verdict: Verdict, *, problems: int) -> str:
    """One line a slot; the best one is marked, and so is one that went wrong."""
    head = (
        "slot",
        "method",
        "learning rate",
        "parameters",
        "test accuracy before",
        "after",
        "best on the way",
        "validation",
        "reward bits, at most",
        "bits it holds",
    )
    rows: list[str] = []
    for found in findings:
        best = found.slot == verdict.best
        mark = " <span class=tag>best</span>" if best else ""
        mark += f' <span class="tag bad">{found.ended}</span>' if found.ended else ""
        cells = (
            learning_rate(found.lr),
            count(found.num_parameters),
            share(found.before),
            share(found.after),
            share(found.best),
            share(found.validation),
            count(round(found.bits)),
            MISSING if found.capacity is None else count(round(found.capacity)),
        )
        rows.append(
            f"<tr{' class=best' if best else ''}><th scope=row>{escape(found.slot)}{mark}</th>"
            f"<td class=method>{escape(found.method)}</td>"
            + "".join(f"<td class=number>{escape(cell)}</td>" for cell in cells)
            + "</tr>"
        )
    note = (
        "Accuracy is the share of completions with the full reward. The best slot is chosen on the validation split "
        "and reported on the test split, at the last step: the best on the way is the highest of many and so too high. "
        f"One standard error is at most {0.5 / max(1, problems) ** 0.5:.3f} on {problems:,} test problems. A group's "
        "rewards tell at most its size times the entropy of their distribution in it."
    )
    return section("Findings", f"{table(head, rows, numbers_from=2)}<p class=note>{note}</p>", anchor="findings")


def charts(series: Sequence[Series], *, has_bits: bool) -> str:
    """Empty places that the script fills."""
    small = "".join(
        f"<figure><figcaption>{escape(one.measure.title)}</figcaption>"
        f'<div id={one.measure.key} class="chart small"></div></figure>'
        for one in series
    )
    if has_bits:
        small += (
            "<figure><figcaption>Bits in the rewards so far, at most, and what each adapter holds</figcaption>"
            f'<div id={BITS} class="chart small"></div></figure>'
        )
    body = (
        "<div class=controls><span id=splits class=buttons></span><span id=axis class=buttons></span></div>"
        "<figure><figcaption>Held-out accuracy</figcaption><div id=held-out class=chart></div></figure>"
        f"<div class=charts>{small}</div>"
        "<noscript><p>The charts need JavaScript; figures/ holds them as pictures.</p></noscript>"
    )
    return section("Learning curves", body, anchor="curves")


def rollouts(rows: Sequence[RolloutRow]) -> str:
    """Completions of the base and of the last step side by side, a card a problem."""
    if not rows:
        return ""
    last = max(row.step for row in rows)
    cards: list[str] = []
    for problem in dict.fromkeys(row.problem for row in rows):
        shown = [row for row in rows if row.problem == problem and row.step in (0, last)]
        if not shown:
            continue
        boxes = "".join(_box(row) for row in shown)
        cards.append(
            f"<article class=sample><div class=asked><div><h4>prompt</h4><pre>{escape(shown[0].prompt)}</pre></div>"
            f"<div><h4>reference answer</h4><pre>{escape(shown[0].answer)}</pre></div></div>"
            f"<div class=answers>{boxes}</div></article>"
        )
    return section("Completions before and after", "".join(cards), anchor="samples")


def _box(row: RolloutRow) -> str:
    when = "before" if row.step == 0 else "after"
    facts = [
        f"{when} training",
        f"reward {row.reward:g}",
        f"{row.tokens:,} tokens",
        *([] if row.stopped else ["cut off"]),
    ]
    facts += [f"scorer: {row.failure}"] if row.failure else []
    return (
        f'<div class="answer {when}"><h4>{escape(row.slot)} <span>{escape(", ".join(facts))}</span></h4>'
        f"<pre>{escape(row.completion)}</pre></div>"
    )
