"""Provenance tells the exact source and imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lowregret.specs.codec import from_dict, to_dict
from lowregret.store import Environment, collect_environment


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_commit_and_changes_of_the_source_are_recorded(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "first")
    clean = collect_environment(threads=1, source=tmp_path)
    assert clean.git_commit is not None
    assert len(clean.git_commit) == 40
    assert clean.git_diff is None
    (tmp_path / "code.py").write_text("x = 2\n")
    changed = collect_environment(threads=1, source=tmp_path)
    assert changed.git_commit == clean.git_commit
    assert changed.git_diff is not None
    assert "+x = 2" in changed.git_diff
    (tmp_path / "code.py").write_text("x = 3\n" * 100_000)
    assert len(collect_environment(threads=1, source=tmp_path).git_diff or "") < 210_000


def test_outside_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    assert collect_environment(threads=1, source=tmp_path).git_commit is None


def test_what_the_caller_knows_is_kept_and_it_reads_back() -> None:
    environment = collect_environment(threads=3, device="cuda: X", command=["lowregret", "sft", "--rank", "8"])
    assert (environment.threads, environment.device, environment.command[2]) == (3, "cuda: X", "--rank")
    assert environment.packages["numpy"]
    assert environment.python.startswith("3.")
    assert from_dict(Environment, to_dict(environment)) == environment


def test_store_and_specs_import_without_torch() -> None:
    program = (
        "import sys, lowregret.store, lowregret.specs.codec, lowregret.specs.identity;"
        "lowregret.store.collect_environment(threads=1);"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
