"""What a run ran on: versions, machine, threads, and the exact source.

Guarantees: collecting imports none of the packages it names, and records no host name, no environment variable and
no user name.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "lowregret",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "numpy",
    "reasoning-gym",
)
"""Packages whose version can change a run's numbers."""

LARGEST_DIFF = 200_000
"""Characters of a diff that are kept; past that the source was not meant to be told by its diff."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Provenance of a run, written to `environment.json`.

    >>> Environment(created="2026-01-01T00:00:00+00:00", python="3.11.2", platform="Linux", cpu="x", num_cpus=2,
    ...     device="cpu", threads=2).git_commit is None
    True
    """

    created: str
    """When the run was created, ISO 8601 in UTC."""
    python: str
    """Version of Python."""
    platform: str
    """Operating system and machine type."""
    cpu: str
    """Model name of the processor."""
    num_cpus: int
    """Processors that this process may use."""
    device: str
    """Device that the run computes on, in words."""
    threads: int
    """CPU threads of the run; sums depend on it."""
    packages: dict[str, str] = field(default_factory=dict[str, str])
    """Installed versions of `PACKAGES`."""
    command: tuple[str, ...] = ()
    """The command line that started the run."""
    git_commit: str | None = None
    """Commit of the repository that the source lies in, where it lies in one."""
    git_diff: str | None = None
    """What the source's working tree had changed against that commit; None where nothing or no repository."""


def collect_environment(
    *,
    threads: int,
    device: str = "cpu",
    command: Sequence[str] = (),
    source: Path | None = None,
) -> Environment:
    """The environment of this process. `source` is the folder whose repository is recorded: the package's own."""
    commit, diff = _git_state(Path(__file__).parent if source is None else source)
    return Environment(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu_name(),
        num_cpus=_num_cpus(),
        device=device,
        threads=threads,
        packages=_versions(PACKAGES),
        command=tuple(command),
        git_commit=commit,
        git_diff=diff,
    )


def _versions(names: Sequence[str]) -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # An extra that is not installed took no part in the run.
    return versions


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(
            r"^model name\s*:\s*(.+)$",
            cpuinfo.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def _num_cpus() -> int:
    # macOS has no affinity; there every processor counts.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _git_state(folder: Path) -> tuple[str | None, str | None]:
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    diff = _git(folder, "diff", "HEAD") or None
    if diff is not None and len(diff) > LARGEST_DIFF:
        diff = diff[:LARGEST_DIFF] + f"\n[cut: the diff has {len(diff)} characters]\n"
    return commit.strip(), diff


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, or None where git or a repository is missing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
