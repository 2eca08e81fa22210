"""A full disk is a typed error that names the path, and what was there stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowregret.errors import CapacityError, CheckpointError
from lowregret.store.atomic import disk_errors, write_text

LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy
from safetensors.numpy import save_file
from lowregret.errors import CapacityError
from lowregret.store.atomic import write_text
from lowregret.store.checkpoints import writing_checkpoint

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
root = Path(sys.argv[1])
try:
    write_text(root / "plan.toml", "x" * 2000)
except CapacityError as error:
    print(error)
try:
    with writing_checkpoint(root / "checkpoints", 20, keep=1) as folder:
        (folder / "state.json").write_text("x" * 2000)
except CapacityError as error:
    print(error)
try:
    with writing_checkpoint(root / "checkpoints", 30, keep=1) as folder:
        save_file({"w": numpy.zeros(2000)}, folder / "w.safetensors")
except CapacityError as error:
    print(error)
"""


def test_write_replaces_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    write_text(path, "old")
    write_text(path, "né\n")
    assert path.read_bytes() == "né\n".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.toml"]


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits differ")
def test_no_space_keeps_the_old_file_and_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("old")
    (tmp_path / "checkpoints" / "step-000010").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    first, second, third = done.stdout.splitlines()
    assert str(tmp_path / "plan.toml") in first
    assert "no space" in first
    assert "free some disk" in first
    assert str(tmp_path / "checkpoints" / "step-000020") in second
    assert "no space" in second
    # safetensors writes in Rust and has an error type of its own.
    assert str(tmp_path / "checkpoints" / "step-000030") in third
    assert "no space" in third
    assert (tmp_path / "plan.toml").read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoints", "plan.toml"]
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step-000010"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_device_is_told(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    with pytest.raises(CapacityError, match=r"log.*no space left"), disk_errors(tmp_path / "log"):
        (tmp_path / "log").write_text("x")


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), disk_errors(tmp_path):
        _ = 1 / 0
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "x")
    with pytest.raises(CheckpointError, match="may write to"), disk_errors(tmp_path / "x"):
        raise PermissionError(13, "Permission denied")
