"""The envelope of a result: what was asked, with which settings, on what machine and source, and what was found.

One JSON file a script under `benchmarks/results/`, every one with the fields of `FIELDS`. Standard library only, so
that `summary.py` can draw the page on a machine that has nothing installed but matplotlib.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FIELDS = (
    *("question", "script", "setting", "rows", "medians", "answers", "checks", "raw"),
    *("versions", "device", "commit", "date", "seconds"),
)
PACKAGES = ("lowregret", "torch", "transformers", "peft", "trl")
VECTOR_FEATURES = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
"""Flags of a processor that decide how fast a matrix product is, best first; the first two multiply bf16."""
MEASURED = ("src", "benchmarks", "pyproject.toml", "constraints.txt")
MADE = ("benchmarks/results", "benchmarks/figures", "benchmarks/RESULTS.md")
"""What benchmarks write: it says nothing about the source that was measured."""
LEAST = 5
"""Measurements that a median needs at least."""
PRIVATE = ("child", "job", "results", "smoke", "short")
"""Arguments of a script that are no settings of its question."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a question's row in the summary holds.

    >>> Answer(ours=400.0, peer=100.0, unit="tokens/s", ours_was="fp32", peer_was="TRL, fp32").ratio
    4.0
    """

    ours: float
    peer: float
    unit: str
    """Chosen so that ours / peer is what the goal is about: speeds where more is better, else times and memories."""
    ours_was: str
    """Contender and number format."""
    peer_was: str

    @property
    def ratio(self) -> float:
        """Ours over the peer."""
        return self.ours / self.peer


def write_result(
    name: str,
    *,
    arguments: Any,
    question: str,
    rows: Sequence[Mapping[str, Any]],
    medians: Mapping[str, Mapping[str, float]],
    answers: Mapping[str, Answer],
    checks: Mapping[str, Any],
    raw: Any,
    started: float,
    accelerator: str | None = None,
) -> dict[str, Any]:
    """Put what was found into its envelope and write `NAME.json` to the folder of results.

    Args:
        arguments: of the command line; settings are taken from it.
        rows: one a contender: its name, number format, number of measurements.
        medians: by contender, then by quantity with its unit in its name.
        checks: correctness beside the measurement.
        started: `time.perf_counter()` when the script began.
        accelerator: name of the card, where one computed.
    """
    result: dict[str, Any] = {
        "question": question,
        "script": f"benchmarks/{name}.py",
        "setting": settings_of(arguments),
        "rows": [dict(row) for row in rows],
        "medians": {contender: dict(own) for contender, own in medians.items()},
        "answers": {key: {**asdict(answer), "ratio": answer.ratio} for key, answer in answers.items()},
        "checks": dict(checks),
        "raw": raw,
        "versions": versions(),
        "device": device(threads=arguments.threads) | ({"accelerator": accelerator} if accelerator else {}),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 1),
    }
    if arguments.smoke:
        result["smoke"] = True
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def settings_of(arguments: Any) -> dict[str, Any]:
    """The command line as plain values; where a file lay on one machine says nothing to a reader."""
    kept = {key: value for key, value in vars(arguments).items() if key not in PRIVATE and value is not None}
    plain = {key: _without_place(value) if isinstance(value, str | Path) else value for key, value in kept.items()}
    return plain | {"set": "short" if arguments.short else "full"}


def _without_place(value: str | Path) -> str:
    """A file by its last two parts; hub ids and names stay as they are."""
    path = Path(value)
    return "/".join(path.parts[-2:]) if path.suffix or path.is_absolute() else str(value)


def versions() -> dict[str, str]:
    """Of Python and the packages whose version moves a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # took no part
    return found


def device(*, threads: int) -> dict[str, Any]:
    """The processor, what it multiplies fast, and how much of the machine was used."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    own = set(flags[1].split()) if flags else set[str]()
    return {
        "processor": name[1].strip() if name else platform.processor() or platform.machine(),
        "vector_features": [feature for feature in VECTOR_FEATURES if feature in own],
        "bf16_instructions": bool(own & {"amx_bf16", "avx512_bf16"}),
        "cores": os.cpu_count() or 1,
        "threads": threads,
        "memory_gib": _memory_gib(),
    }


def _memory_gib() -> float | None:
    info = Path("/proc/meminfo")
    found = (
        re.search(r"^MemTotal:\s*(\d+) kB", info.read_text(encoding="utf-8"), re.MULTILINE) if info.is_file() else None
    )
    return round(int(found[1]) / 2**20, 1) if found else None


def same_device(result: Mapping[str, Any], *, threads: int) -> bool:
    """Whether a result was measured on a machine like this one, with these versions."""
    here = device(threads=threads)
    compared = ("processor", "vector_features", "cores", "threads")
    alike = all(result["device"].get(field) == here[field] for field in compared)
    return alike and {k: v for k, v in result["versions"].items() if k != "lowregret"} == {
        k: v for k, v in versions().items() if k != "lowregret"
    }


def commit() -> dict[str, Any]:
    """The commit that was measured, and whether what was measured differs from it.

    Raises:
        SystemExit: the package that would be measured is not this repository's, so that its commit is not known.
    """
    found = importlib.util.find_spec("lowregret")
    if found is None or found.origin is None or ROOT not in Path(found.origin).resolve().parents:
        raise SystemExit(
            "lowregret is not imported from this repository: install it with --editable, or set PYTHONPATH=src"
        )
    changed = _git("status", "--porcelain", "--", *MEASURED, *(f":(exclude){path}" for path in MADE))
    return {"id": _git("rev-parse", "HEAD").strip() or None, "dirty": bool(changed.strip())}


def _git(*arguments: str) -> str:
    """Output of a git command; empty without git or a repository."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
