"""Where banks train: in this process, or in worker processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Self

from lowregret.errors import LowregretError
from lowregret.launch.banks import run_bank

MOST_RETRIES = 3
"""Times that lost workers are replaced before a study gives up: a bank that kills its worker each time is at fault."""


class InProcess:
    """One bank after another, here."""

    def run(self, folders: Mapping[str, str], done: Callable[[str], None]) -> None:
        """Train the banks in order."""
        for name, folder in folders.items():
            run_bank(Path(folder))
            done(name)


class Workers:
    """Banks side by side in processes of their own, which are spawned: nothing of this process is inherited.

    A context manager: the workers live from the first bank to its end, because starting one takes seconds.
    """

    def __init__(self, number: int, notify: Callable[[str], None]) -> None:
        self._number, self._notify = number, notify
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def run(self, folders: Mapping[str, str], done: Callable[[str], None]) -> None:
        """Train the banks; a worker that dies is replaced, and its bank goes on from its last checkpoint.

        Raises:
            LowregretError: workers died again and again.
        """
        left = dict(folders)
        for _ in range(MOST_RETRIES + 1):
            try:
                self._run_once(left, done)
                return
            except BrokenProcessPool:
                self._close()
                self._notify(f"a worker died; {len(left)} banks go on from their last checkpoints")
        raise LowregretError(f"workers died {MOST_RETRIES + 1} times; is memory short? Lower --workers and resume")

    def _run_once(self, left: dict[str, str], done: Callable[[str], None]) -> None:
        """Train what is left; takes each bank out of `left` when it is finished."""
        pool = self._open()
        names: dict[Future[None], str] = {}
        queue = deque(left.items())
        try:
            while queue or names:
                # No more than there are workers: what the pool has queued up it can't take back when asked to stop.
                while queue and len(names) < self._number:
                    name, folder = queue.popleft()
                    names[pool.submit(run_bank, Path(folder))] = name
                for future in wait(names, return_when=FIRST_COMPLETED).done:
                    future.result()
                    name = names.pop(future)
                    del left[name]
                    done(name)
        except BaseException:
            # A bank under way finishes its step, writes a checkpoint and ends.
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise

    def _open(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(max_workers=self._number, mp_context=context, initializer=_begin_worker)
        return self._pool

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _begin_worker() -> None:
    """A session of its own, so that Ctrl-C reaches the study alone, which then stops its workers in order; and an end
    with the study's, however that came: a worker that nobody feeds would wait for ever."""
    os.setsid()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
