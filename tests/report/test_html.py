"""The report holds everything, escapes everything, asks for nothing, and draws itself in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lowregret.report.charts import script_json
from lowregret.report.html import write_report
from lowregret.specs.codec import from_toml
from lowregret.store import RunDirectory

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


class Page(HTMLParser):
    """Elements, attributes and text by element of a document."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)


def page_of(run: RunDirectory) -> Page:
    path = write_report(run)
    assert path == run.report_path
    return Page(path.read_text(encoding="utf-8"))


def test_the_document_is_well_formed_and_asks_for_nothing(make_run) -> None:
    page = page_of(make_run())
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "base"), tag
        assert not {"src", "href", "action", "srcset"} & attributes.keys(), (tag, attributes)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert "@import" not in "".join(page.text["style"])
    assert "url(" not in "".join(page.text["style"])


def test_text_of_models_and_data_never_becomes_markup(make_run, hostile) -> None:
    plain, attacked = page_of(make_run(name="plain")), page_of(make_run(text=hostile, also=(hostile,)))
    assert [tag for tag, _ in attacked.tags] == [tag for tag, _ in plain.tags]
    assert f"{hostile} (0)" in attacked.text["pre"]
    assert any(hostile in text for text in attacked.text["li"])


def test_script_json_reads_back(hostile) -> None:
    data = {"a": hostile, "b": [1.5, None, "\u2028"]}
    text = script_json(data)
    assert not set("<>&") & set(text)
    assert json.loads(text) == data


def test_every_section_tells_its_part(make_run) -> None:
    run = make_run()
    page = page_of(run)
    said = " ".join("".join(parts) for tag, parts in page.text.items() if tag not in ("script", "style"))
    for part in (
        "smollm2-135m",
        "reasoning-gym:chain_sum",
        "Held-out NLL fell from 1.464",
        "LoRA, rank 64",
        "before training",
        "after training",
        "given on the command line",
        "dropped_overlong",
        "538.0 MB",
        run.environment.python,
        f"lowregret sft {run.path}/spec.toml --out",
        "--slot full --merge",
    ):
        assert part in said, part
    assert "--resume" not in said
    spec_text = next(text for text in page.text["pre"] if text.startswith("task ="))
    assert from_toml(type(run.spec), spec_text) == run.spec


def test_chart_data_is_the_logs(make_run, sweep) -> None:
    run = make_run(sweep, diverged="r64-lr0.003")
    page = page_of(run)
    data = json.loads(next(text for text in page.text["script"] if text.startswith('{"styles"')))
    test = next(part for part in data["heldOut"] if part["split"] == "test")
    logged = [row.nll for row in run.read_evals() if (row.slot, row.split) == ("r8-lr0.001", "test")]
    assert next(curve for curve in test["curves"] if curve["slot"] == "r8-lr0.001")["values"] == logged
    assert test["base"] == 1.464
    assert data["rates"][2]["values"][-1] is None


def test_a_slot_that_was_stopped_early_reads_so(make_run) -> None:
    page = page_of(make_run(stopped="r64"))
    assert "stopped early" in page.text["td"]
    assert "diverged" not in " ".join("".join(parts) for tag, parts in page.text.items() if tag != "script")


def test_a_run_that_is_not_finished_says_how_to_go_on(make_run) -> None:
    run = make_run(finished=False)
    said = " ".join("".join(parts) for tag, parts in page_of(run).text.items() if tag != "script")
    assert "not finished: step 60 of 120" in said
    assert f"lowregret sft --resume {run.path}" in said


def test_an_empty_run_has_a_report_too(make_run) -> None:
    with RunDirectory.open(make_run().path) as run:
        run.truncate_logs(-1)
    (run.path / "summary.json").unlink()
    assert "No held-out loss" in "".join(page_of(run).text["p"])


def browse(document: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a file in a headless browser without any service of its own."""
    assert BROWSER is not None
    services = ("quic", "background-networking", "component-update", "sync", "gpu", "dev-shm-usage")
    quiet = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{service}" for service in services)]
    return subprocess.run(
        [
            BROWSER,
            *quiet,
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}",
            "--window-size=1200,2400",
            "--virtual-time-budget=8000",
            *options,
            document.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_draws_every_curve_without_an_error(make_run, sweep, tmp_path: Path, hostile, theme: str) -> None:
    run = make_run(sweep, diverged="r64-lr0.003", text=hostile, also=(hostile,))
    scheme = "--blink-settings=preferredColorScheme=" + ("0" if theme == "dark" else "1")
    done = browse(write_report(run), tmp_path, "--dump-dom", scheme)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    charts = re.findall(r'<div id="?([a-z-]+)"? class="chart.*?</figure>', done.stdout, re.DOTALL)
    assert charts == ["held-out", "training", "rates"]
    bodies = re.findall(r'class="chart.*?</figure>', done.stdout, re.DOTALL)
    # Held out: twelve slots and the base. Training: each slot raw and smoothed. Rates: one line a rank.
    assert [body.count('class="trace scatter') for body in bodies] == [13, 24, 3]
    assert [body.count('class="legendtext"') for body in bodies] == [13, 12, 3]
    assert done.stdout.count('<button type="button" aria-pressed') == 5


@needs_browser
def test_the_reader_can_change_split_and_axis(make_run, tmp_path: Path) -> None:
    document = tmp_path / "clicked.html"
    report = write_report(make_run()).read_text(encoding="utf-8")
    clicks = (
        'for (const text of ["validation", "linear steps"])'
        ' [...document.querySelectorAll(".buttons button")].find(button => button.textContent === text).click();'
    )
    document.write_text(report.replace("</body>", f"<script>{clicks}</script></body>"), encoding="utf-8")
    done = browse(document, tmp_path, "--dump-dom")
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    held_out = re.findall(r'class="chart.*?</figure>', done.stdout, re.DOTALL)[0]
    assert "validation NLL (nats per token)" in held_out
    assert ">optimizer steps<" in held_out
    assert "log scale" not in held_out
    assert held_out.count('class="trace scatter') == 5
