"""What a run shows while it trains: a live table on a terminal, plain lines anywhere else. Always on stderr.

Guarantee: a listener only listens. `Fan` passes every event to several of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lowregret.specs import ResolvedPlan
from lowregret.training.progress import EvalReport, ProgressListener, StepReport

SHOWN_SPLIT = "validation"
"""The held-out split on display; the test split is for the end."""
LINE_SECONDS = 10.0
"""Least time between two plain lines of steps."""


class Scores:
    """The latest numbers of every slot, as both displays show them."""

    def __init__(self) -> None:
        self.slots: tuple[str, ...] = ()
        self.losses: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.step: StepReport | None = None
        self.steps = 0
        self.measure = "NLL"

    def on_plan(self, plan: ResolvedPlan) -> None:
        self.slots = tuple(slot.name for slot in plan.spec.slots)
        self.steps = plan.steps

    def on_step(self, report: StepReport) -> None:
        self.step = report
        self.losses |= report.losses

    def on_eval(self, report: EvalReport) -> None:
        if report.split == SHOWN_SPLIT:
            self.measure = report.measure
            self.latest |= report.nll
            self.first = {**report.nll, **self.first}

    def held_out(self, slot: str) -> str:
        """Held-out measure of a slot, at first -> now."""
        if slot not in self.latest:
            return ""
        first, latest = self.first[slot], self.latest[slot]
        return f"{first:.4f} -> {latest:.4f}"

    def headline(self) -> str:
        """Step, speed and the time that is left."""
        if self.step is None:
            return f"step 0/{self.steps}"
        report = self.step
        speed, left = report.tokens_per_second, clock(report.seconds_left)
        return f"step {report.step}/{report.steps}  {speed:,.0f} tokens/s  {left} left"


class LiveDisplay:
    """A table that is drawn over itself, for a terminal. A context manager: leaving it leaves the last state."""

    def __init__(self, console: Console) -> None:
        self._scores = Scores()
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def on_plan(self, plan: ResolvedPlan) -> None:
        self._scores.on_plan(plan)
        self._draw()

    def on_step(self, report: StepReport) -> None:
        self._scores.on_step(report)
        self._draw()

    def on_eval(self, report: EvalReport) -> None:
        self._scores.on_eval(report)
        self._draw()

    def on_message(self, message: str) -> None:
        self._console.print(Text(message, style="dim"))

    def _draw(self) -> None:
        scores = self._scores
        table = Table(box=None, header_style="dim", pad_edge=False)
        table.add_column("slot")
        table.add_column(f"training {scores.step.measure if scores.step else 'loss'}", justify="right")
        table.add_column(f"{SHOWN_SPLIT} {scores.measure}, first -> now", justify="right")
        for slot in scores.slots:
            loss = f"{scores.losses[slot]:.4f}" if slot in scores.losses else ""
            table.add_row(Text(slot), loss, scores.held_out(slot))
        done = scores.step.step if scores.step else 0
        bar = ProgressBar(total=max(1, scores.steps), completed=done, width=40)
        self._live.update(Group(bar, Text(scores.headline()), table), refresh=True)


class PlainLines:
    """One line an event, for logs and pipes; steps at most every ten seconds, and the last."""

    def __init__(self, console: Console) -> None:
        self._scores = Scores()
        self._console = console
        self._last_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def on_plan(self, plan: ResolvedPlan) -> None:
        self._scores.on_plan(plan)

    def on_step(self, report: StepReport) -> None:
        self._scores.on_step(report)
        now = time.monotonic()
        if report.step == report.steps or now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            losses = "  ".join(f"{slot} {loss:.4f}" for slot, loss in report.losses.items())
            self._print(f"{self._scores.headline()}  {report.measure}: {losses}")

    def on_eval(self, report: EvalReport) -> None:
        self._scores.on_eval(report)
        values = "  ".join(f"{slot} {nll:.4f}" for slot, nll in report.nll.items())
        self._print(f"step {report.step}  {report.split} {report.measure}: {values}")

    def on_message(self, message: str) -> None:
        self._print(message)

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


class Fan:
    """Passes every event to each of several listeners."""

    def __init__(self, listeners: Sequence[ProgressListener]) -> None:
        self._listeners = tuple(listeners)

    def on_plan(self, plan: ResolvedPlan) -> None:
        for listener in self._listeners:
            listener.on_plan(plan)

    def on_step(self, report: StepReport) -> None:
        for listener in self._listeners:
            listener.on_step(report)

    def on_eval(self, report: EvalReport) -> None:
        for listener in self._listeners:
            listener.on_eval(report)

    def on_message(self, message: str) -> None:
        for listener in self._listeners:
            listener.on_message(message)


def display(console: Console) -> LiveDisplay | PlainLines:
    """The display that suits where the console writes to."""
    return LiveDisplay(console) if console.is_terminal else PlainLines(console)


def clock(seconds: float) -> str:
    """A duration as a clock shows it.

    >>> clock(75), clock(3725)
    ('1:15', '1:02:05')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
