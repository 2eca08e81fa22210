"""What every test runs under: shapes checked, one thread, no network, no cache of the user, no empty test file."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

# Read by libraries when they are first imported, so set before any import of ours.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import jaxtyping
import pytest

ROOMS_WITH_TENSORS = ("adapters", "batches", "models", "objectives", "sampling", "training")

# Shapes and types of public signatures are checked in the test run only: outside it the hook would cost time.
jaxtyping.install_import_hook([f"lowregret.{room}" for room in ROOMS_WITH_TENSORS], "beartype.beartype")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, so that nothing is read from or left in the user's."""
    folder = tmp_path_factory.mktemp("cache")
    # The compiled pieces are shared by all tests: each process that began with none would compile them for seconds.
    compiled = tmp_path_factory.getbasetemp().parent / "kernels"
    compiled.mkdir(mode=0o700, exist_ok=True)
    (folder / "kernels").symlink_to(compiled)
    monkeypatch.setenv("LOWREGRET_CACHE", str(folder))
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A test file that holds no test is an error, not a silence."""
    report = yield
    # Doctest modules are a subclass, and most files have no doctest.
    if type(collector) is pytest.Module and report.passed and not report.result:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} holds no test; add one or remove the file"
    return report
