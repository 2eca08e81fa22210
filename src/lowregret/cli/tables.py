"""Tables of the terminal. What they say is computed in `planner.describe` and `report.tables`. No torch."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowregret.planner.describe import plan_tables
from lowregret.report.numbers import MISSING
from lowregret.report.tables import accuracy_table, findings_table
from lowregret.specs import ResolvedPlan
from lowregret.specs.shape import ModelShape
from lowregret.store import RunDirectory, SampleRow
from lowregret.store.rows import RolloutRow

MOST_SAMPLE_LINES = 6


def print_plan(
    plan: ResolvedPlan,
    shape: ModelShape,
    console: Console,
    *,
    macs_per_second: float | None = None,
    memory_bytes: int | None = None,
) -> None:
    """The plan with its reasons, and what to look at before starting."""
    head = f"{plan.spec.model.source} on {plan.spec.data.source}: {plan.steps:,} steps on {plan.device} in {plan.dtype}"
    console.print(Text(head, style="bold"))
    for described in plan_tables(plan, shape, macs_per_second=macs_per_second, memory_bytes=memory_bytes):
        if not described.rows:
            continue
        table = Table(title=described.title, title_justify="left", header_style="dim")
        for column in described.columns:
            table.add_column(column, overflow="fold")
        for row in described.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    for warning in plan.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))


def print_result(run: RunDirectory, console: Console) -> None:
    """How a finished run ended: losses or accuracies, a sample answer, and where everything lies."""
    if run.spec.task == "rl":
        console.print(accuracy_table(run))
        print_rollout(run.read_rollouts(), console)
    else:
        console.print(findings_table(run))
        print_sample(run.read_samples(), console)
    for name, path in (("adapters", run.path / "adapters"), ("report", run.report_path)):
        if path.exists():
            console.print(Text(f"{name}: {path}"), soft_wrap=True)


def print_sample(samples: tuple[SampleRow, ...], console: Console) -> None:
    """One test prompt, its answers before and after training side by side below each other."""
    after = [row for row in samples if row.when == "after"]
    if not after:
        return
    prompt = after[0].prompt
    table = Table(title="one test prompt", title_justify="left", show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("prompt", Text(_shortened(prompt)))
    for row in samples:
        if row.prompt == prompt:
            table.add_row(f"{row.when}, {row.slot}", Text(_shortened(row.answer) or MISSING))
    console.print(table)


def print_rollout(rows: tuple[RolloutRow, ...], console: Console) -> None:
    """One test problem, its completions before and after training below each other."""
    last = max((row.step for row in rows), default=0)
    if not last:
        return
    shown = [row for row in rows if row.problem == rows[0].problem and row.step in (0, last)]
    table = Table(title="one test problem", title_justify="left", show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("prompt", Text(_shortened(rows[0].prompt)))
    table.add_row("its answer", Text(_shortened(rows[0].answer) or MISSING))
    for row in shown:
        when = "after" if row.step else "before"
        table.add_row(f"{when}, {row.slot}, reward {row.reward:g}", Text(_shortened(row.completion) or MISSING))
    console.print(table)


def _shortened(text: str) -> str:
    lines = text.strip().splitlines()
    more = [] if len(lines) <= MOST_SAMPLE_LINES else [f"... ({len(lines) - MOST_SAMPLE_LINES} more lines)"]
    return "\n".join(lines[:MOST_SAMPLE_LINES] + more)
