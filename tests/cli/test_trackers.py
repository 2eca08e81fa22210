"""A tracker gets the numbers, and never ends a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lowregret.cli.trackers import Sink, Tracker, open_tracker
from lowregret.errors import SpecError
from lowregret.specs import DataSpec, ModelSpec, RunSpec, TrackingSpec
from lowregret.training.progress import EvalReport, StepReport

STEP = StepReport(step=3, steps=9, losses={"r8": 1.5}, tokens_per_second=100.0, seconds_left=1.0)


def spec_with(tracker: str | None) -> RunSpec:
    tracking = TrackingSpec(tracker=tracker)
    return RunSpec(model=ModelSpec(source="m"), data=DataSpec(source="d"), slots=(), tracking=tracking)


def test_steps_and_evaluations_are_logged_by_slot_and_the_tracker_is_closed():
    logged: list[tuple[int, dict[str, float]]] = []
    closed: list[bool] = []
    sink = Sink(log=lambda values, step: logged.append((step, values)), close=lambda: closed.append(True))
    with Tracker(sink, pytest.fail) as tracker:
        tracker.on_step(STEP)
        tracker.on_eval(EvalReport(step=3, split="test", nll={"r8": 1.25}))
    assert logged == [(3, {"loss/r8": 1.5, "tokens_per_second": 100.0}), (3, {"test/r8": 1.25})]
    assert closed == [True]


def test_a_failing_tracker_is_reported_once_and_left_alone():
    calls: list[int] = []
    heard: list[str] = []

    def log(values: dict[str, float], step: int) -> None:
        calls.append(step)
        raise ConnectionError("no network")

    with Tracker(Sink(log=log, close=lambda: pytest.fail("a failed tracker is left alone")), heard.append) as tracker:
        tracker.on_step(STEP)
        tracker.on_step(STEP)
    assert calls == [3]
    assert heard == ["tracking stopped: no network; the run directory still gets everything"]


def test_an_unknown_tracker_is_refused(tmp_path: Path):
    with pytest.raises(SpecError, match=r"tracking.tracker: 'mlflow' is not known; give one of trackio"):
        open_tracker(spec_with("mlflow"), tmp_path, print)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(SpecError, match=r"--track trackio: its package is not installed; pip install '\.\[track\]'"):
        open_tracker(spec_with("trackio"), tmp_path, print)
