"""The progress of a study: one line that changes on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.text import Text

from lowregret.cli.live import clock
from lowregret.launch.study import StudyProgress

QUIET_SECONDS = 30.0
"""Time between two lines of a log."""


class StudyLines:
    """Cells done, cells running, time left; and what is said on the way, such as the estimates so far."""

    def __init__(self, console: Console, status: Status | None = None) -> None:
        """
        Args:
            console: where lines go.
            status: a terminal's last line, which changes in place; None: progress is a line now and then.
        """
        self._console, self._status = console, status
        self._last = 0.0

    def on_progress(self, progress: StudyProgress) -> None:
        """Cells and banks done, and the time left at the pace so far."""
        left = "" if not progress.work_done else f", {clock(progress.seconds_left)} left for what is planned"
        line = (
            f"cells {progress.cells_done}/{progress.cells_planned}, {progress.running} running, banks "
            f"{progress.banks_done}/{progress.banks_planned}, {clock(progress.seconds)} so far{left}"
        )
        if self._status is not None:
            self._status.update(Text(line, style="dim"))
            return
        now = time.monotonic()
        if now - self._last >= QUIET_SECONDS or progress.cells_done == progress.cells_planned:
            self._last = now
            self.on_message(line)

    def on_message(self, message: str) -> None:
        """One line as it stands."""
        self._console.print(Text(message, style="dim"), soft_wrap=True)


@contextmanager
def display_study(console: Console) -> Generator[StudyLines, None, None]:
    """A listener for the length of a study."""
    if not console.is_terminal:
        yield StudyLines(console)
        return
    with console.status("starting") as status:
        yield StudyLines(console, status)
