"""Tables for the terminal: the end of a run, and the list of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from lowregret.report.findings import judge, slot_findings
from lowregret.report.numbers import MISSING, count, learning_rate, nats, share
from lowregret.report.rl_findings import accuracy_findings
from lowregret.report.rl_findings import judge as judge_accuracy
from lowregret.store import RunDirectory, RunEntry

_STATUS_STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow", "unreadable": "red"}
_MOST_NAMES = 4


def findings_table(run: RunDirectory) -> Table:
    """One line a slot: what it is, and its held-out loss before and after. The best slot is bold."""
    findings = slot_findings(run)
    best = judge(findings).best
    table = Table(title="test NLL (nats per token)", title_justify="left", header_style="dim")
    table.add_column("slot", no_wrap=True)
    for name in ("lr", "parameters", "before", "after", "drop", "bits/token"):
        table.add_column(name, justify="right", no_wrap=True)
    for found in findings:
        after = Text(found.ended or nats(found.after), style="red" if found.diverged else "")
        table.add_row(
            Text(found.slot),
            learning_rate(found.lr),
            count(found.num_parameters),
            nats(found.before),
            after,
            nats(found.drop),
            nats(found.bits),
            style="bold green" if found.slot == best else None,
        )
    return table


def accuracy_table(run: RunDirectory) -> Table:
    """One line a slot of a run of RL: what it is, and its held-out accuracy before, after, and at its best."""
    findings = accuracy_findings(run)
    best = judge_accuracy(findings).best
    table = Table(title="test accuracy", title_justify="left", header_style="dim")
    table.add_column("slot", no_wrap=True)
    for name in ("lr", "parameters", "before", "after", "rise", "best on the way"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for found in findings:
        table.add_row(
            Text(found.slot),
            learning_rate(found.lr),
            count(found.num_parameters),
            share(found.before),
            share(found.after),
            share(found.rise),
            share(found.best),
            Text(found.ended or "", style="red"),
            style="bold green" if found.slot == best else None,
        )
    return table


def runs_table(entries: Sequence[RunEntry], *, root: Path | None = None) -> Table:
    """One line a run, for `lowregret runs`; paths are shown below `root` where it is given."""
    table = Table(header_style="dim")
    for name in ("run", "status", "model", "data", "slots", "step", "best", "on test data"):
        # Folded and never cut, because a path is there to be copied.
        table.add_column(name, justify="right" if name in ("step", "on test data") else "left", overflow="fold")
    for entry in entries:
        path = entry.path if root is None or entry.path == root else entry.path.relative_to(root)
        status = Text(entry.status, style=_STATUS_STYLES[entry.status])
        if entry.status == "unreadable":
            status.append(f": {entry.problem}", style="default")
            table.add_row(Text(str(path)), status, *[""] * 6)
            continue
        table.add_row(
            Text(str(path)),
            status,
            Text(entry.model),
            Text(entry.data),
            Text(" ".join(entry.slots) if len(entry.slots) <= _MOST_NAMES else f"{len(entry.slots)} slots"),
            f"{entry.step}/{entry.steps}",
            Text(entry.best_slot or MISSING),
            _on_test_data(entry),
        )
    return table


def _on_test_data(entry: RunEntry) -> str:
    if entry.test_accuracy is not None:
        return f"accuracy {share(entry.test_accuracy)}"
    return MISSING if entry.test_nll is None else f"NLL {nats(entry.test_nll)}"
