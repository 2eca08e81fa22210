"""`report.html` of a study: findings with their verdicts, the paper's figures from the user's data, every cell.

Guarantees: as `report.html` of a run; what it says is what `findings.json` and the cells' records hold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import stdev
from typing import Any

from lowregret.report.html import page
from lowregret.report.numbers import count, nats, seconds
from lowregret.report.sections import provenance
from lowregret.report.study_charts import Chart, arm_names, by_arm, by_seed, charts_of
from lowregret.report.study_figures import write_study_figures
from lowregret.specs import QuestionSpec
from lowregret.specs.codec import from_dict, to_toml
from lowregret.store.atomic import write_text
from lowregret.store.environment import Environment
from lowregret.store.study import StudyDirectory
from lowregret.studies.outcome import Outcome
from lowregret.studies.reading import outcomes_of

_MOODS = {"supported": "good", "contradicted": "bad", "inconclusive": "open"}


def write_study_report(study: StudyDirectory) -> Path:
    """Draw every figure and write `report.html`; returns its path."""
    outcomes = [outcomes_of(study, index) for index in range(len(study.spec.questions))]
    charts = [charts_of(k, question, outcomes[k]) for k, question in enumerate(study.spec.questions)]
    write_study_figures(tuple(chart for part in charts for chart in part), study.figures)
    write_text(study.report_path, render_study(study, outcomes, charts))
    return study.report_path


def render_study(
    study: StudyDirectory, outcomes: Sequence[Sequence[Outcome]], charts: Sequence[Sequence[Chart]]
) -> str:
    """The report as one HTML document."""
    spec, findings = study.spec, study.read_findings()
    environment = from_dict(Environment, study.environment)
    parts = [_header(study, findings, outcomes), _findings(findings)]
    for question, own, drawn in zip(spec.questions, outcomes, charts, strict=True):
        parts.append(_question(question, own, drawn))
    parts += [_cost(study, outcomes), provenance(environment), _spec(to_toml(spec))]
    data = [_chart_data(chart) for part in charts for chart in part]
    return page(title=f"study {spec.name} of {spec.model.source}", parts=parts, data=data, script="study.js")


def _header(study: StudyDirectory, findings: list[dict[str, Any]], outcomes: Sequence[Sequence[Outcome]]) -> str:
    spec = study.spec
    verdicts = Counter(finding["verdict"] for finding in findings)
    text = ", ".join(f"{verdicts[kind]} {kind}" for kind in _MOODS if verdicts[kind]) or "no findings yet"
    cells = {outcome.cell for own in outcomes for outcome in own}
    number = len(spec.questions)
    facts = [f"{number} question{'s' if number > 1 else ''}", f"{len(cells)} cells", study.environment["created"][:10]]
    return (
        "<header><p class=eyebrow>lowregret study</p>"
        f"<h1>{escape(spec.name)} <span class=on>on</span> {escape(spec.model.source)}</h1>"
        f'<p class="verdict good">Of {len(findings)} claims: {escape(text)}.</p>'
        f"<p class=facts>{' &middot; '.join(escape(fact) for fact in facts)}</p></header>"
    )


def _findings(findings: list[dict[str, Any]]) -> str:
    rows: list[str] = []
    for finding in findings:
        interval, margin = finding.get("interval"), finding.get("margin")
        estimate = "-" if finding.get("estimate") is None else f"{finding['estimate']:.4g}"
        why = escape(finding["reason"]) + (
            f"<br>To settle it: {escape(finding['settles'])}" if finding["settles"] else ""
        )
        rows.append(
            f"<tr><th scope=row>{escape(finding['claim'])}</th>"
            f"<td>{escape(finding['question'])}<br><span class=note>{escape(finding['quantity'])}</span></td>"
            f"<td><span class='tag {_MOODS[finding['verdict']]}'>{escape(finding['verdict'])}</span></td>"
            f"<td class=number>{estimate}</td><td class=number>{_pair(interval)}</td>"
            f"<td class=number>{_pair(margin)}</td><td class=number>{finding['seeds']}</td><td>{why}</td></tr>"
        )
    head = "".join(
        f"<th>{name}</th>"
        for name in ("claim", "question", "verdict", "estimate", "interval", "margin", "seeds", "why")
    )
    return (
        "<section><h2>Findings</h2><div class=scroll><table><thead><tr>"
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        "<p class=note>Margins were set in the study's spec before it ran. A claim is supported or contradicted only "
        "when its interval says so at the level of its rule, after Holm's correction over all claims; else it is "
        "inconclusive.</p></section>"
    )


def _question(question: QuestionSpec, outcomes: Sequence[Outcome], charts: Sequence[Chart]) -> str:
    figures = "".join(
        f"<figure><figcaption>{escape(chart.title)}</figcaption><div class=chart id={escape(chart.key)}></div>"
        f"<p class=note>{escape(chart.caption)}</p></figure>"
        for chart in charts
    )
    noise = noise_floor(outcomes)
    floor = "" if noise is None else f" Noise floor: {noise:.4f} nats between seeds at one arm and rate (median SD)."
    seeds = len(question.seeds)
    facts = f"{len(outcomes)} cells, {seeds} seed{'s' if seeds > 1 else ''}, data {question.data.source}."
    return (
        f"<section><h2>{escape(question.protocol)}</h2><p class=note>{escape(facts + floor)}</p>{figures}"
        f"<details><summary>Every cell</summary>{_cells(outcomes)}</details></section>"
    )


def noise_floor(outcomes: Sequence[Outcome]) -> float | None:
    """Median over arms and rates of the standard deviation of the final test loss between seeds; None for one seed."""
    deviations: list[float] = []
    for own in by_arm(outcomes).values():
        rates: dict[float, list[float]] = {}
        for outcome in own:
            if math.isfinite(outcome.final_test):
                rates.setdefault(outcome.lr, []).append(outcome.final_test)
        deviations += [stdev(losses) for losses in rates.values() if len(losses) > 1]
    return sorted(deviations)[len(deviations) // 2] if deviations else None


def _cells(outcomes: Sequence[Outcome]) -> str:
    names = arm_names([outcome.arm for outcome in outcomes])
    rows: list[str] = []
    for own in by_arm(outcomes).values():
        for cells in by_seed(own).values():
            for outcome in sorted(cells, key=lambda cell: cell.lr):
                final = "diverged" if outcome.diverged else nats(outcome.final_test)
                rows.append(
                    f"<tr><td>{escape(names[outcome.arm])}</td><td class=number>{outcome.lr:.3g}</td>"
                    f"<td class=number>{outcome.seed}</td><td class=number>{final}</td>"
                    f"<td class=number>{count(outcome.arm.params)}</td><td class=number>{outcome.arm.batch_size}</td>"
                    f"<td class=number>{outcome.arm.steps}</td><td><code>{outcome.cell[:12]}</code></td></tr>"
                )
    head = "".join(
        f"<th>{name}</th>"
        for name in ("arm", "learning rate", "seed", "final test NLL", "parameters", "batch", "steps", "cell")
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _cost(study: StudyDirectory, outcomes: Sequence[Sequence[Outcome]]) -> str:
    records = [study.read_record(cell) for cell in sorted({one.cell for own in outcomes for one in own})]
    tokens, took = sum(record.tokens for record in records), sum(record.seconds for record in records)
    text = f"{len(records)} cells, {count(tokens)} tokens, {seconds(took)} of training steps"
    return f"<section><h2>Cost</h2><p>{escape(text)}; cells that two questions share were trained once.</p></section>"


def _spec(text: str) -> str:
    return f"<section><details><summary>study.toml</summary><pre>{escape(text)}</pre></details></section>"


def _pair(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(f"{end:.4g}" for end in value)
    return "-" if value is None else f"{value:.4g}"


def _chart_data(chart: Chart) -> dict[str, object]:
    return {
        "key": chart.key,
        "x_title": chart.x_title,
        "y_title": chart.y_title,
        "x_log": chart.x_log,
        "ticks": chart.ticks,
        "series": [
            {
                "name": series.name,
                "x": series.x,
                "y": series.y,
                "low": series.low,
                "high": series.high,
                "note": series.note,
                "light": series.style.light,
                "dark": series.style.dark,
                "dash": series.style.dash,
            }
            for series in chart.series
        ],
    }
