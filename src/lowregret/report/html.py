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

from lowregret.report import sections
from lowregret.report.charts import chart_data, script_json
from lowregret.report.findings import judge, slot_findings
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
    findings, environment = slot_findings(run), run.environment
    verdict, data = judge(findings), chart_data(run)
    parts = (
        sections.header(run, verdict, environment),
        sections.findings_table(findings, verdict),
        sections.charts(has_rates=bool(data["rates"])),
        sections.samples(run.read_samples()),
        sections.decisions(run.plan),
        sections.data(run),
        sections.provenance(environment),
        sections.commands(run, verdict, to_toml(run.spec)),
    )
    title = f"{run.spec.model.source} on {run.spec.data.source}"
    return page(title=title, parts=parts, data=data, script="report.js")


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
