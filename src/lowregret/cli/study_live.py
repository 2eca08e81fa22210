"""The progress of a study on a terminal, or one line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from lowregret.cli.live import clock
from lowregret.launch.study import StudyProgress

QUIET_SECONDS = 10.0
"""Time between two lines of a log."""


class StudyLines:
    """One line an event; on a terminal the last one is overwritten."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0

    def on_progress(self, progress: StudyProgress) -> None:
        """Cells and banks done, and the time left at the pace so far."""
        now = time.monotonic()
        if now - self._last < QUIET_SECONDS and progress.cells_done < progress.cells_planned:
            return
        self._last = now
        left = "" if not progress.new_cells else f", {clock(progress.seconds_left)} left for what is planned"
        self._console.print(
            Text(
                f"cells {progress.cells_done}/{progress.cells_planned}, banks "
                f"{progress.banks_done}/{progress.banks_planned}, {clock(progress.seconds)} so far{left}",
                style="dim",
            ),
            soft_wrap=True,
        )

    def on_message(self, message: str) -> None:
        """One line as it stands."""
        self._console.print(Text(message, style="dim"), soft_wrap=True)


@contextmanager
def display_study(console: Console) -> Generator[StudyLines, None, None]:
    """A listener for the length of a study."""
    yield StudyLines(console)
