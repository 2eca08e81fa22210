"""Worker processes that score answers, seen from the parent: hands out, listens, ends what is stuck, replaces.

What is guaranteed: `run` gives one outcome for each job, in order, whatever scorers do. A job takes its worker at most
`PATIENCE` times its time limit plus a second; a worker that is ended costs the job it was at, nothing else; a start
takes at most `START_SECONDS`. So a run is bounded by the sum of these over its jobs, divided by the workers.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from lowregret.errors import LowregretError, SpecError
from lowregret.rewards.sources import Source
from lowregret.rewards.wire import Job, Outcome, jobs_message, outcome_of
from lowregret.rewards.worker import GRACE, work
from lowregret.specs.reward import Failure

PATIENCE = 4.0
"""Seconds by the clock for each second of processor time: what a crowded machine may slow a scorer down by, and how
long one that only waits is waited for."""
START_SECONDS = 300.0
"""For a worker to start and import its libraries: a second or two, a minute on a cold and crowded disk."""
PIPE_SECONDS = 10.0
"""Without a byte moving through a pipe to a live worker, before it counts as dead."""
MOST_STARTS = 3
"""Workers that may die one after another before they are ready: the fault is then not with one of them."""
MOST_JOBS, MOST_BYTES = 32, 2**20
"""Sent at once: enough that a worker doesn't wait for the next, few enough that the others get their share."""


class _Worker:
    """A process, its pipe, and what it was given and has not answered."""

    def __init__(self, sources: Sequence[Source], timeouts: Sequence[float]) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        _never_block(here)
        # Daemonic, so that a scorer left open doesn't hold up the end of the program.
        self.process = context.Process(target=work, args=(there, sources, timeouts), daemon=True)
        self.pipe: Connection = here
        self.ready = False
        self.jobs: deque[int] = deque()
        self.deadline = time.monotonic() + START_SECONDS
        with there:
            self.process.start()

    def end(self) -> int | None:
        """Kill it with all that it started; gives the exit code."""
        self.pipe.close()
        if self.ready and self.process.is_alive() and self.process.pid is not None:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        return code


class _Run(NamedTuple):
    """One call's jobs, what is still to be handed out, and what came back."""

    jobs: Sequence[Job]
    queue: deque[int]
    outcomes: list[Outcome | None]


class Pool:
    """`number` workers, alive between calls."""

    def __init__(self, sources: Sequence[Source], timeouts: Sequence[float], number: int) -> None:
        self._sources, self._timeouts, self._number = sources, timeouts, number
        self._workers: list[_Worker] = []
        self._bad_starts = 0

    def open(self) -> None:
        """Start the workers and wait until all have loaded their scorers.

        Raises:
            SpecError: a scorer can't be loaded.
            LowregretError: workers don't start.
        """
        try:
            while len(self._workers) < self._number:
                self._workers.append(self._start())
            nothing = _Run((), deque(), [])
            while not all(worker.ready for worker in self._workers):
                self._listen(nothing)
        except BaseException:
            self._kill()
            raise

    def close(self) -> None:
        """End the workers: idle ones by the end of their pipe, any other at once."""
        deadline = time.monotonic() + 2 * GRACE
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            if worker.ready and not worker.jobs:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        self._kill()

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Outcomes of the jobs, in their order."""
        run = _Run(jobs, deque(range(len(jobs))), [None] * len(jobs))
        if jobs and not self._workers:
            self.open()
        try:
            while run.queue or any(worker.jobs for worker in self._workers):
                for worker in list(self._workers):
                    if worker.ready and not worker.jobs and run.queue:
                        self._hand_out(run, worker)
                self._listen(run)
        except BaseException:
            # Answers under way would be taken for those of the next call.
            self._kill()
            raise
        return [outcome for outcome in run.outcomes if outcome is not None]

    def _hand_out(self, run: _Run, worker: _Worker) -> None:
        """Give an idle worker its share, at most a quarter of what is left for each."""
        if worker.pipe.poll():
            # An idle worker says nothing: it died between two calls, which is no answer's fault.
            self._read(run, worker)
            return
        most = min(MOST_JOBS, math.ceil(len(run.queue) / (4 * self._number)))
        size = 0
        while run.queue and len(worker.jobs) < most:
            size += len(run.jobs[run.queue[0]].payload)
            if worker.jobs and size > MOST_BYTES:
                break
            worker.jobs.append(run.queue.popleft())
        try:
            worker.pipe.send_bytes(jobs_message([run.jobs[number] for number in worker.jobs]))
        except OSError:
            self._lost(run, worker, "crash", "the worker died")
            return
        self._allow(run, worker)

    def _allow(self, run: _Run, worker: _Worker) -> None:
        """Start the clock of the worker's next job."""
        if not worker.jobs:
            worker.deadline = math.inf
            return
        timeout = self._timeouts[run.jobs[worker.jobs[0]].scorer]
        worker.deadline = time.monotonic() + PATIENCE * timeout + GRACE

    def _listen(self, run: _Run) -> None:
        """Take in what has come, or wait for it; end workers that are late."""
        soonest = min(worker.deadline for worker in self._workers) - time.monotonic()
        pipes = [worker.pipe for worker in self._workers]
        heard = wait(pipes, None if soonest == math.inf else max(0.0, soonest))
        for worker in list(self._workers):
            if worker.pipe in heard:
                self._read(run, worker)
            elif worker.deadline < time.monotonic():
                self._late(run, worker)

    def _read(self, run: _Run, worker: _Worker) -> None:
        try:
            while worker.pipe.poll():
                message = worker.pipe.recv_bytes()
                if not worker.ready:
                    self._begun(worker, message.decode())
                    continue
                outcome, goes_on = outcome_of(message)
                run.outcomes[worker.jobs.popleft()] = outcome
                self._allow(run, worker)
                if not goes_on:
                    self._replace(run, worker)
                    return
        except (EOFError, OSError, ValueError):
            self._lost(run, worker, "crash", "the worker died")

    def _begun(self, worker: _Worker, refusal: str) -> None:
        if refusal:
            raise SpecError(refusal)
        worker.ready, worker.deadline = True, math.inf
        self._bad_starts = 0

    def _late(self, run: _Run, worker: _Worker) -> None:
        if not worker.ready:
            raise LowregretError(
                f"a reward worker did not load its scorers within {START_SECONDS:g} s; does a file of rewards wait for "
                "something when it is imported?"
            )
        timeout = self._timeouts[run.jobs[worker.jobs[0]].scorer]
        self._lost(run, worker, "timeout", f"more than {PATIENCE * timeout + GRACE:g} s by the clock")

    def _lost(self, run: _Run, worker: _Worker, failure: Failure, reason: str) -> None:
        """Charge a dead or stuck worker's end to the job it was at, if any, and go on without it."""
        jobs, was_ready = worker.jobs, worker.ready
        number = jobs.popleft() if jobs else None
        code = self._replace(run, worker)
        if number is not None:
            if code == -signal.SIGVTALRM:
                timeout = self._timeouts[run.jobs[number].scorer]
                failure, reason = "timeout", f"more than {timeout:g} s, and did not stop when asked"
            elif failure == "crash":
                reason = f"{reason} ({_how(code)})"
            run.outcomes[number] = Outcome(0.0, failure, reason)
        if not was_ready:
            self._bad_starts += 1
            if self._bad_starts >= MOST_STARTS:
                raise LowregretError(
                    f"reward workers die when they start ({_how(code)}); a script that trains needs the line "
                    "`if __name__ == '__main__':` before it does"
                )

    def _replace(self, run: _Run, worker: _Worker) -> int | None:
        """End a worker, give back what it had not begun, start another."""
        run.queue.extendleft(reversed(worker.jobs))
        place = self._workers.index(worker)
        code = worker.end()
        self._workers[place] = self._start()
        return code

    def _start(self) -> _Worker:
        return _Worker(self._sources, self._timeouts)

    def _kill(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []


def _never_block(pipe: Connection) -> None:
    """Have reads and writes fail when nothing moves: a worker may die or stop in the middle of a message."""
    limit = struct.pack("ll", int(PIPE_SECONDS), 0)
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
