"""Contenders in turn: each measured as often as the others, one after another, with a line a turn on stderr."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from beside.envelope import LEAST, RESULTS

Turn = TypeVar("Turn")


def parser_of(doc: str | None, *, data: str, short: Mapping[str, Any]) -> argparse.ArgumentParser:
    """What every script is told: model, data, threads, where results go, and which set of settings.

    Args:
        data: the packaged data that is used where no file is given.
        short: defaults that `--short` changes.
    """
    changed = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in short.items())
    epilog = f"--short stands for: {changed}" if changed else None
    parser = argparse.ArgumentParser(
        description=doc, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="packaged name, folder or hub id (smollm2-135m)")
    parser.add_argument("--data", default=data, help=f"GSM8K's train.jsonl, or any data that lowregret reads ({data})")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of every contender")
    parser.add_argument("--short", action="store_true", help="smaller settings, for `make bench`")
    parser.add_argument("--smoke", action="store_true", help="allow medians of few; the result is marked as no result")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder that the JSON is written to")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    return parser


def parse(parser: argparse.ArgumentParser, short: Mapping[str, Any]) -> argparse.Namespace:
    """The arguments, `short` being the defaults where `--short` is given."""
    if "--short" in sys.argv:
        parser.set_defaults(**short)
    return parser.parse_args()


def need(number: int, arguments: argparse.Namespace, remedy: str) -> None:
    """Refuse, before anything is measured, medians of too few.

    Raises:
        SystemExit: fewer than five, and this is no smoke test.
    """
    if number < LEAST and not arguments.smoke:
        raise SystemExit(f"a median needs {LEAST} measurements, this would take {number}: raise {remedy}")


def median(values: Iterable[float]) -> float:
    """Of at least one value, as a plain float."""
    return float(statistics.median(values))


def take_turns(
    label: str, names: Sequence[str], rounds: int, act: Callable[[str], Turn], describe: Callable[[Turn], str]
) -> dict[str, list[Turn]]:
    """Let every contender act once a round.

    The time left is said from each contender's own earlier turns, or from all turns so far where it has none.
    """
    found: dict[str, list[Turn]] = {name: [] for name in names}
    took: dict[str, list[float]] = defaultdict(list)
    left, number, began = list(names) * rounds, len(names) * rounds, time.perf_counter()
    for turn in range(rounds):
        for name in names:
            started = time.perf_counter()
            found[name].append(act(name))
            took[name].append(time.perf_counter() - started)
            left.pop(0)
            every = statistics.mean(value for own in took.values() for value in own)
            remaining = sum(statistics.mean(took[other]) if took[other] else every for other in left)
            gone = time.perf_counter() - began
            say(
                f"{label} {number - len(left)}/{number}: round {turn + 1}, {name}: {describe(found[name][-1])}; "
                f"{clock(gone)} gone, about {clock(remaining)} left"
            )
    return found


def say(line: str) -> None:
    """To whoever waits."""
    print(line, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(75.4)
    '1:15'
    """
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


class TooSlow(Exception):
    """A contender that was stopped at its time limit."""


def in_process_of_its_own(
    command: Sequence[str], name: str, *, threads: int, most_seconds: float | None = None
) -> dict[str, Any]:
    """Run a contender; it prints its result as a line of JSON behind the word RESULT.

    Raises:
        SystemExit: it printed none.
        TooSlow: it took longer than it may.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=most_seconds,
        )
    except subprocess.TimeoutExpired as stopped:
        raise TooSlow(name) from stopped
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise SystemExit(f"{name} failed:\n{done.stdout}\n{done.stderr}")


def give(result: Mapping[str, Any]) -> None:
    """What a contender's process ends with."""
    print("RESULT " + json.dumps(result), flush=True)


def peak_mib(device: str = "cpu") -> float:
    """Largest memory of this process: resident, or allocated on a GPU.

    Linux lets `ru_maxrss` begin with that of whoever started the process; VmHWM counts this program alone.
    """
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource

    unit = 2**20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
