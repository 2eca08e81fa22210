"""`report.html`: one file that shows a run, to be opened anywhere.

Guarantees: it holds all that it needs (plotly.js included, about 5 MB) and its content policy forbids any request;
it follows the reader's light or dark setting; it can be written at any moment of a run, finished or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib import resources
from pathlib import Path

from plotly.offline import get_plotlyjs

from lowregret.report import rl_sections, sections
from lowregret.report.charts import chart_data, script_json
from lowregret.report.findings import Verdict, judge, slot_findings
from lowregret.report.rl_charts import rl_chart_data
from lowregret.report.rl_curves import step_series
from lowregret.report.rl_findings import accuracy_findings
from lowregret.report.rl_findings import judge as judge_accuracy
from lowregret.specs.codec import to_toml
from lowregret.store import RunDirectory
from lowregret.store.atomic import write_text

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_report(run: RunDirectory) -> Path:
    """Write `report.html` into the run directory and return its path."""
    write_text(run.report_path, render(run))
    return run.report_path


def render(run: RunDirectory) -> str:
    """The report as one HTML document."""
    environment = run.environment
    verdict, data, results = _results(run) if run.spec.rl is None else _rl_results(run)
    parts = (
        sections.header(run, verdict, environment),
        *results,
        sections.decisions(run.plan),
        sections.data(run),
        sections.provenance(environment),
        sections.commands(run, verdict, to_toml(run.spec)),
    )
    title = f"{run.spec.model.source} on {run.spec.data.source}"
    return page(title=title, parts=parts, data=data, script="report.js")


def _results(run: RunDirectory) -> tuple[Verdict, dict[str, object], tuple[str, ...]]:
    """Verdict, chart data and the parts of the page that show what came out."""
    findings, data = slot_findings(run), chart_data(run)
    verdict = judge(findings)
    parts = (
        sections.findings_table(findings, verdict),
        sections.charts(has_rates=bool(data["rates"])),
        sections.samples(run.read_samples()),
    )
    return verdict, data, parts


def _rl_results(run: RunDirectory) -> tuple[Verdict, dict[str, object], tuple[str, ...]]:
    """The same of a run of RL."""
    findings, policy, accuracy = accuracy_findings(run), run.read_policy(), run.read_accuracy()
    verdict = judge_accuracy(findings)
    problems = max((row.problems for row in accuracy if row.split == "test"), default=0)
    parts = (
        rl_sections.accuracy_table(findings, verdict, problems=problems),
        rl_sections.charts(step_series(policy, accuracy, run.plan), has_bits=any(row.bits for row in policy)),
        rl_sections.rollouts(run.read_rollouts()),
    )
    return verdict, rl_chart_data(run), parts


def page(*, title: str, parts: Iterable[str], data: object, script: str) -> str:
    """One self-contained document: the parts, their chart data, plotly.js, and a script of `assets/` that draws."""
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        '<meta name=color-scheme content="light dark">'
        f"<title>{escape(title)}</title><style>{_asset('report.css')}</style></head><body><main>{''.join(parts)}</main>"
        f"<script type=application/json id=chart-data>{script_json(data)}</script>"
        f"<script>{get_plotlyjs()}</script><script>{_asset(script)}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return (resources.files("lowregret.report") / "assets" / name).read_text(encoding="utf-8")
