"""The tables of the terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lowregret.report.tables import findings_table, runs_table
from lowregret.store import RunEntry, list_runs


def printed(table: Table, width: int = 140) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if start in line)


def test_findings_show_before_and_after(make_run) -> None:
    text = printed(findings_table(make_run(diverged="r64", stopped="r1")))
    assert "1.4640" in line_of(text, "r8")
    assert "4,608" in line_of(text, "r8")
    assert "diverged" in line_of(text, "r64")
    assert "stopped early" in line_of(text, "r1")
    assert "diverged" not in line_of(text, "r1")
    assert "diverged" not in line_of(text, "r8")


def test_findings_fit_a_narrow_terminal(make_run) -> None:
    text = printed(findings_table(make_run()), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "bits/token" in text


def test_runs_are_listed_below_their_root_with_their_state(make_run, tmp_path: Path) -> None:
    make_run(name="one")
    make_run(name="two", finished=False)
    make_run(name="three")
    (tmp_path / "three" / "plan.toml").write_text("[[")
    text = printed(runs_table(list_runs(tmp_path), root=tmp_path))
    assert "finished" in line_of(text, "one")
    assert "120/120" in line_of(text, "one")
    assert "stopped" in line_of(text, "two")
    assert "60/120" in line_of(text, "two")
    assert "unreadable" in line_of(text, "three")
    assert str(tmp_path / "one") not in text


def test_markup_in_names_is_text(tmp_path: Path) -> None:
    entry = RunEntry(path=tmp_path / "[red]", status="stopped", model="[bold]m[/bold]", slots=("[link=x]r8",))
    text = printed(runs_table([entry], root=tmp_path))
    assert "[red]" in text
    assert "[bold]m[/bold]" in text
    assert "[link=x]r8" in text
