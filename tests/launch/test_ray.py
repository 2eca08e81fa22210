"""A study on a Ray cluster of this machine: it finds what it finds elsewhere, and loses nothing with a worker.

Each study is a process of its own, as a user's: Ray changes the process that it is connected from.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from lowregret.cli.main import run
from lowregret.errors import LowregretError, SpecError
from lowregret.launch.ray_cluster import RayCluster, train_bank
from lowregret.store import RunDirectory
from lowregret.store.study import StudyDirectory
from tiny_folder import tiny_model_folder, write_questions

RATES = ("--grid", "fixed", "--lr", "1e-2,1e-1", "--full-lr", "1e-2")


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    tiny_model_folder(folder / "model")
    write_questions(folder / "data.jsonl", 80)
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that is started makes its token in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Generator[None, None, None]:
    before = {process.pid for process in psutil.process_iter()}
    yield
    deadline = time.monotonic() + 20
    while left := [process for process in psutil.process_iter(["cmdline"]) if is_ray(process, before)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(nothing_left_behind: None) -> Generator[Start, None, None]:
    """Starts the command line as a process, which ends with the test, however that ends."""
    with ExitStack() as stack:

        def begin(*arguments: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "lowregret", *arguments]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            # Closes its pipes and waits for it.
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield begin


def is_ray(process: psutil.Process, before: set[int]) -> bool:
    words = process.info["cmdline"] or []
    return process.pid not in before and any("/ray/" in word or word.startswith("ray::") for word in words)


def flags(materials: Path, *more: str) -> list[str]:
    return [
        *("study", "certify", "--model", str(materials / "model"), "--data", str(materials / "data.jsonl")),
        *("--rank", "4", "--steps", "200", "--batch-size", "4", "--seeds", "2", "--dtype", "fp32"),
        *("--device", "cpu", "--threads", "1", "--validation-size", "4", "--test-size", "8", "--workers", "2"),
        *(*RATES, *more),
    ]


def trainers(process: subprocess.Popen[str], out: Path) -> dict[int, Path]:
    """Workers of the study -> the bank that each holds the lock of, where it has trained a step."""
    found: dict[int, Path] = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            files = [Path(file.path) for file in child.open_files()]
        except psutil.Error:
            continue
        for file in files:
            if file.name == ".lock" and out / "banks" in file.parents and (file.parent / "metrics.jsonl").exists():
                found[child.pid] = file.parent
    return found


def wait_for_trainers(process: subprocess.Popen[str], out: Path) -> dict[int, Path]:
    deadline = time.monotonic() + 120
    while not (found := trainers(process, out)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    return found


def findings(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "findings.json").read_text())


def records(folder: Path) -> dict[str, Any]:
    study = StudyDirectory.open(folder)
    return {cell.cell: study.read_record(cell.cell).untimed() for cell in study.plan.cells}


def require_same(mine: Path, other: Path) -> None:
    assert StudyDirectory.open(mine).plan == StudyDirectory.open(other).plan
    assert records(mine) == records(other)
    assert findings(mine) == findings(other)


@pytest.fixture(scope="module")
def finished(materials: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study in worker processes; only read."""
    out = tmp_path_factory.mktemp("finished") / "study"
    assert run(flags(materials, "--out", str(out))) == 0
    return out


def test_a_cluster_finds_the_same_and_a_worker_may_die(start: Start, materials: Path, finished: Path, tmp_path: Path):
    out = tmp_path / "killed"
    study = start(*flags(materials, "--json", "--ray", "local", "--out", str(out)))
    worker, bank = next(iter(wait_for_trainers(study, out).items()))
    os.kill(worker, signal.SIGKILL)
    result, errors = study.communicate(timeout=240)
    assert study.returncode == 0, errors
    assert f"bank {bank.name}: its worker died; it goes on from its last checkpoint" in errors
    assert StudyDirectory.open(out).plan == StudyDirectory.open(finished).plan
    assert records(out) == records(finished)
    assert findings(out) == findings(finished)
    # None of the cluster's own remarks is mixed into the result.
    assert json.loads(result)["findings"] == findings(finished)


def test_asked_to_stop_it_leaves_checkpoints_and_goes_on(start: Start, materials: Path, finished: Path, tmp_path: Path):
    out, torn = tmp_path / "stopped", tmp_path / "torn"
    study = start(*flags(materials, "--ray", "local", "--out", str(out)))
    bank = next(iter(wait_for_trainers(study, out).values()))
    study.send_signal(signal.SIGTERM)
    _, errors = study.communicate(timeout=120)
    assert study.returncode == 130, errors
    assert f"go on with: lowregret study --resume {out}" in errors
    # The step under way when it was stopped is the last one logged and the one checkpointed.
    stopped = RunDirectory.open(bank)
    assert not stopped.finished
    checkpoint = stopped.latest_checkpoint(on_skip=pytest.fail)
    assert checkpoint is not None
    assert checkpoint[0] == stopped.read_metrics()[-1].step

    shutil.copytree(out, torn)
    plan = torn / bank.relative_to(out) / "plan.toml"
    plan.write_text("torn")
    study = start("study", "--resume", str(torn), "--ray", "local")
    _, errors = study.communicate(timeout=120)
    assert study.returncode == 2, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert str(plan) in line
    assert "Traceback" not in errors

    assert run(["study", "--resume", str(out)]) == 0
    assert records(out) == records(finished)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--ray", "127.0.0.1:1"), "--ray 127.0.0.1:1: can't be reached"),
        (("--ray", "ray://127.0.0.1:1"), "--ray ray://127.0.0.1:1: can't be reached"),
        (("--ray", "nonsense"), "--ray: 'nonsense' is no address; give auto"),
        (("--ray", "local", "--power"), "--ray: --power trains nothing"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(
    materials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
):
    assert run(flags(materials, "--out", str(tmp_path / "none"), *more)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert not (tmp_path / "none").exists()


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    cluster = RayCluster("auto", number=1, threads=1, cuda=False, notify=lambda _: None)
    with pytest.raises(LowregretError, match=r"pip install 'lowregret\[ray\]'"):
        cluster.__enter__()


def test_a_gpu_is_dealt_out_by_the_cluster(materials: Path, capsys: pytest.CaptureFixture[str]):
    given = flags(materials, "--ray", "local")
    given[given.index("--device") + 1] = "cuda:1"
    assert run(given) == 2
    assert "cuda:1 must be cuda" in capsys.readouterr().err


def test_a_folder_that_a_worker_does_not_see_is_named(tmp_path: Path):
    with pytest.raises(LowregretError, match="a file system that every node has at the same path"):
        train_bank(str(tmp_path / "elsewhere"), str(tmp_path))


def test_a_worker_hears_interrupts_where_its_cluster_ignored_them(tmp_path: Path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(LowregretError):
            train_bank(str(tmp_path / "elsewhere"), str(tmp_path))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("address", ["", "host", "host:", ":6379", "host:port"])
def test_what_is_no_address_is_refused(address: str):
    with pytest.raises(SpecError, match="is no address"):
        RayCluster(address, number=1, threads=1, cuda=False, notify=lambda _: None)
