"""`report.html` of a study: findings with their verdicts, the paper's figures from the user's data, every cell.

Guarantees: as `report.html` of a run; what it says is what `findings.json` and the cells' records hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import stdev
from typing import Any

from lowregret.report.accuracy_table import accuracy_table
from lowregret.report.fidelity_table import fidelity_table
from lowregret.report.html import page
from lowregret.report.numbers import count, seconds
from lowregret.report.protocols.asked import by_arm
from lowregret.report.protocols.chart import Chart
from lowregret.report.protocols.information import first_pass_bits
from lowregret.report.sections import provenance
from lowregret.report.study_charts import charts_of
from lowregret.report.study_figures import write_study_figures
from lowregret.report.study_tables import MOODS, cells_table, cost_table, findings_table, invariance_table
from lowregret.specs import QuestionSpec
from lowregret.specs.codec import from_dict, to_toml
from lowregret.store.atomic import write_text
from lowregret.store.environment import Environment
from lowregret.store.study import StudyDirectory
from lowregret.studies.outcome import Outcome
from lowregret.studies.reading import outcomes_of


def write_study_report(study: StudyDirectory) -> Path:
    """Draw every figure and write `report.html`; returns its path."""
    outcomes = [outcomes_of(study, index) for index in range(len(study.spec.questions))]
    charts = [
        charts_of(index, question, own, first_pass_bits=first_pass_bits(study, own))
        for index, (question, own) in enumerate(zip(study.spec.questions, outcomes, strict=True))
    ]
    write_study_figures(tuple(chart for part in charts for chart in part), study.figures)
    write_text(study.report_path, render_study(study, outcomes, charts))
    return study.report_path


def render_study(
    study: StudyDirectory, outcomes: Sequence[Sequence[Outcome]], charts: Sequence[Sequence[Chart]]
) -> str:
    """The report as one HTML document."""
    spec, findings = study.spec, study.read_findings()
    environment = from_dict(Environment, study.environment)
    parts = [_header(study, findings, outcomes), findings_table(findings)]
    for question, own, drawn in zip(spec.questions, outcomes, charts, strict=True):
        parts.append(_question(study, question, own, drawn))
    parts += [_cost(study, outcomes), provenance(environment), _spec(to_toml(spec))]
    data = [_chart_data(chart) for part in charts for chart in part]
    return page(title=f"study {spec.name} of {spec.model.source}", parts=parts, data=data, script="study.js")


def _header(study: StudyDirectory, findings: list[dict[str, Any]], outcomes: Sequence[Sequence[Outcome]]) -> str:
    spec = study.spec
    cells = {outcome.cell for own in outcomes for outcome in own}
    number = len(spec.questions)
    facts = [f"{number} question{'s' if number > 1 else ''}", f"{len(cells)} cells", study.environment["created"][:10]]
    return (
        "<header><p class=eyebrow>lowregret study</p>"
        f"<h1>{escape(spec.name)} <span class=on>on</span> {escape(spec.model.source)}</h1>"
        f"{_verdicts(findings)}"
        f"<p class=facts>{' &middot; '.join(escape(fact) for fact in facts)}</p></header>"
    )


def _verdicts(findings: list[dict[str, Any]]) -> str:
    """A line a verdict with its claims."""
    if not findings:
        return '<p class="verdict open">No findings yet.</p>'
    lines: list[str] = []
    for verdict, mood in MOODS.items():
        claims = [finding["claim"] for finding in findings if finding["verdict"] == verdict]
        if claims:
            lines.append(
                f"<li class={mood}><b>{len(claims)}</b> <span>{escape(verdict)}</span> {escape(', '.join(claims))}</li>"
            )
    return f"<ul class=verdicts>{''.join(lines)}</ul>"


def _question(
    study: StudyDirectory, question: QuestionSpec, outcomes: Sequence[Outcome], charts: Sequence[Chart]
) -> str:
    head = f"<section><h2>{escape(question.protocol)}</h2>"
    if not outcomes:
        return f"{head}<p class=note>No finished cells.</p></section>"
    figures = "".join(
        f"<figure><figcaption>{escape(chart.title)}</figcaption><div class=chart id={escape(chart.key)}></div>"
        f"<p class=note>{escape(chart.caption)}</p></figure>"
        for chart in charts
    )
    tables = {
        "invariance": invariance_table,
        "cost": cost_table,
        "fidelity": fidelity_table,
        "rl": accuracy_table,
        "rl-layers": accuracy_table,
    }
    table = tables[question.protocol](outcomes) if question.protocol in tables else ""
    measure = "test error rate" if question.rl is not None else "test NLL"
    cells = cells_table(study, outcomes, measure=measure)
    return f"{head}<p class=note>{escape(_facts(question, outcomes))}</p>{table}{figures}{cells}</section>"


def _facts(question: QuestionSpec, outcomes: Sequence[Outcome]) -> str:
    seeds = len(question.seeds)
    stopped = sum(outcome.stopped for outcome in outcomes)
    diverged = sum(outcome.diverged for outcome in outcomes) - stopped
    ended = [f"{number} {how}" for number, how in ((stopped, "stopped early"), (diverged, "diverged")) if number]
    how_ended = f" ({', '.join(ended)})" if ended else ""
    facts = f"{len(outcomes)} cells{how_ended}, {seeds} seed{'s' if seeds > 1 else ''}, data {question.data.source}."
    noise = noise_floor(outcomes)
    # Nobody can guess the facts of a capacity study: its held-out loss says nothing.
    if noise is not None and question.protocol != "capacity":
        unit = "of error rate" if question.rl is not None else "nats"
        facts += f" Noise floor: {noise:.4f} {unit} between seeds at one arm and rate (median SD)."
    return facts


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


def _cost(study: StudyDirectory, outcomes: Sequence[Sequence[Outcome]]) -> str:
    records = [study.read_record(cell) for cell in sorted({one.cell for own in outcomes for one in own})]
    tokens, took = sum(record.tokens for record in records), sum(record.seconds for record in records)
    text = f"{len(records)} cells, {count(tokens)} tokens, {seconds(took)} of training steps"
    return f"<section><h2>Cost</h2><p>{escape(text)}; cells that two questions share were trained once.</p></section>"


def _spec(text: str) -> str:
    return f"<section><details><summary>study.toml</summary><pre>{escape(text)}</pre></details></section>"


def _chart_data(chart: Chart) -> dict[str, object]:
    return {
        "key": chart.key,
        "x_title": chart.x_title,
        "y_title": chart.y_title,
        "x_log": chart.x_log,
        "y_log": chart.y_log,
        "x_ticks": chart.x_ticks,
        "y_ticks": chart.y_ticks,
        "series": [
            {
                "name": series.name,
                "x": series.x,
                "y": series.y,
                "low": series.low,
                "high": series.high,
                "note": series.note,
                "kind": series.kind,
                "light": series.style.light,
                "dark": series.style.dark,
                "dash": series.style.dash,
            }
            for series in chart.series
        ],
        "marks": [
            {
                "name": mark.name,
                "x": mark.x,
                "low": mark.low,
                "high": mark.high,
                "y": mark.y,
                "note": mark.note,
                "light": mark.style.light,
                "dark": mark.style.dark,
            }
            for mark in chart.marks
        ],
        "levels": [
            {"axis": level.axis, "low": level.low, "high": level.high, "text": level.text} for level in chart.levels
        ],
    }
