"""The page of a study holds its findings, tables and charts, escapes everything, and draws itself in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lowregret.report.study_html import noise_floor, write_study_report
from lowregret.store.study import StudyDirectory
from report.simulated import (
    cost_question,
    every_question,
    invariance_question,
    question,
    rank_question,
    write_study,
)
from report.test_html import Page, browse, needs_browser


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyDirectory:
    """A study of every protocol, with its report."""
    written = write_study(tmp_path_factory.mktemp("simulated") / "study", every_question())
    assert write_study_report(written) == written.report_path
    return written


def rows(text: str) -> list[list[str]]:
    """Cells of every table row, without markup."""
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in found]


def test_the_page_has_every_finding_with_what_is_behind_it(study: StudyDirectory) -> None:
    text = study.report_path.read_text(encoding="utf-8")
    page = Page(text)
    findings = study.read_findings()
    assert page.open == []
    assert len(findings) == 21
    heads = [attributes for tag, attributes in page.tags if (tag, attributes.get("class")) == ("tr", "finding")]
    assert len(heads) == len(findings)
    for finding in findings:
        assert finding["reason"][1:] in "".join(page.text["td"])
        assert set(finding["details"]) <= set(page.text["dt"])
    assert "p before Holm's correction" in page.text["dt"]
    supported = [finding["claim"] for finding in findings if finding["verdict"] == "supported"]
    assert any(part.strip() == ", ".join(supported) for part in page.text["li"])


def test_cells_that_were_stopped_early_are_not_called_diverged(tmp_path: Path) -> None:
    asked, outcomes = rank_question()
    text = write_study_report(write_study(tmp_path / "study", [(asked, outcomes)])).read_text(encoding="utf-8")
    became = [row[3] for row in rows(text) if len(row) == 9]
    assert became.count("stopped early") == became.count("diverged") == 1
    assert len(became) == len(outcomes) + 1
    assert f"{len(outcomes)} cells (1 stopped early, 1 diverged)" in text
    assert f"Noise floor: {noise_floor(outcomes):.4f} nats" in text


def test_cells_come_with_their_specs_and_where_they_lie(study: StudyDirectory) -> None:
    page = Page(study.report_path.read_text(encoding="utf-8"))
    assert {"00000000", "06000000"} <= set(page.text["code"])
    assert "r1: cells/00000000/spec.toml" in page.text["summary"]
    specs = [text for text in page.text["pre"] if text.startswith("task =")]
    arms = sum(len({outcome.arm for outcome in outcomes}) for _, outcomes in every_question())
    assert len(specs) == arms


def test_invariance_is_a_table_of_differences(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", [invariance_question()])
    text = write_study_report(study).read_text(encoding="utf-8")
    assert ["p 2, q 0.5", "0", "0", "9.5e-05"] in rows(text)
    assert ["p 4, q 2", "0", "0", "9.5e-05"] in rows(text)
    assert "<figure>" not in text
    assert list(study.figures.iterdir()) == []


def test_cost_puts_counted_beside_measured(tmp_path: Path) -> None:
    text = write_study_report(write_study(tmp_path / "study", [cost_question()])).read_text(encoding="utf-8")
    table = [row for row in rows(text) if row and row[0] in ("r16", "full") and len(row) == 6]
    assert table[0] == ["r16", "16k", "68", "0.680", "0.0808 s", "0.8 (0.8 to 0.8)"]
    assert table[1][3:] == ["1", "0.101 s", "1"]


def test_a_study_without_cells_has_a_page(tmp_path: Path) -> None:
    text = write_study_report(write_study(tmp_path / "study", [(question("cost"), [])])).read_text(encoding="utf-8")
    assert "No finished cells." in text


def test_text_of_a_spec_never_becomes_markup(tmp_path: Path, hostile: str) -> None:
    plain = write_study(tmp_path / "plain", [invariance_question()])
    attacked = write_study(tmp_path / "attacked", [invariance_question()], name=hostile)
    pages = [Page(write_study_report(study).read_text(encoding="utf-8")) for study in (plain, attacked)]
    assert [tag for tag, _ in pages[0].tags] == [tag for tag, _ in pages[1].tags]


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_draws_every_chart_without_an_error(study: StudyDirectory, tmp_path: Path, theme: str) -> None:
    scheme = "--blink-settings=preferredColorScheme=" + ("0" if theme == "dark" else "1")
    done = browse(study.report_path, tmp_path, "--dump-dom", scheme)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    drawn = re.findall(r'<div class="chart js-plotly-plot" id="([a-z0-9-]+)"', done.stdout)
    assert drawn == sorted({path.stem for path in study.figures.iterdir()}, key=drawn.index)
    bodies = dict(
        zip(drawn, re.findall(r'class="chart js-plotly-plot".*?</figure>', done.stdout, re.DOTALL), strict=True)
    )
    # Five curves with their bands, and a diamond for the LR* of each.
    assert bodies["1-rank-rates"].count('class="trace scatter') == 15
    assert bodies["1-rank-rates"].count('class="legendtext"') == 5
    assert bodies["1-rank-rates"].count('class="xerror"') == 5
    assert "parity: \u00b10.005" in bodies["1-rank-regret"]
