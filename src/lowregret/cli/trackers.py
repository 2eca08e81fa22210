"""Progress sent to a tracker besides the run directory. Each tracker is imported when it is asked for.

Guarantee: a tracker that fails is reported once and left alone; the run goes on, because its own files are complete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

from lowregret.errors import SpecError
from lowregret.specs import ResolvedPlan, RunSpec
from lowregret.specs.codec import to_dict
from lowregret.training.progress import EvalReport, StepReport

LogValues = Callable[[dict[str, float], int], None]


@dataclass(frozen=True, kw_only=True)
class Sink:
    """Where a tracker's numbers go.

    >>> Sink(log=lambda values, step: None, close=lambda: None).close() is None
    True
    """

    log: LogValues
    """Takes the values by name and their step."""
    close: Callable[[], None]
    """Called once, at the end of the run."""


class Tracker:
    """A listener that logs `loss/<slot>`, `<split>/<slot>` and `tokens_per_second`. A context manager."""

    def __init__(self, sink: Sink, on_failure: Callable[[str], None]) -> None:
        self._sink = sink
        self._on_failure = on_failure
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guarded(self._sink.close)

    def on_plan(self, plan: ResolvedPlan) -> None:
        pass  # The spec went to the tracker when it was opened.

    def on_step(self, report: StepReport) -> None:
        values = {f"{report.measure}/{slot}": loss for slot, loss in report.losses.items()}
        values["tokens_per_second"] = report.tokens_per_second
        self._guarded(lambda: self._sink.log(values, report.step))

    def on_eval(self, report: EvalReport) -> None:
        values = {f"{report.split}/{slot}": nll for slot, nll in report.nll.items()}
        self._guarded(lambda: self._sink.log(values, report.step))

    def on_message(self, message: str) -> None:
        pass  # Trackers hold numbers.

    def _guarded(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a listener must not end a run, whatever its network does
            self._failed = True
            self._on_failure(f"tracking stopped: {error}; the run directory still gets everything")


def require_tracker(spec: RunSpec) -> None:
    """Check that the tracker that the spec names, if any, can be opened; nothing is opened.

    Raises:
        SpecError: it is not known, or its package is not installed.
    """
    name = spec.tracking.tracker
    if name is None:
        return
    if name not in _OPENERS:
        raise SpecError(f"tracking.tracker: {name!r} is not known; give one of {', '.join(_OPENERS)}")
    _package(name)


def open_tracker(spec: RunSpec, run: Path, on_failure: Callable[[str], None]) -> Tracker:
    """Open the tracker that the spec names.

    Raises:
        SpecError: it is not known, or its package is not installed.
    """
    require_tracker(spec)
    assert spec.tracking.tracker is not None
    return Tracker(_OPENERS[spec.tracking.tracker](spec, run), on_failure)


def _trackio(spec: RunSpec, run: Path) -> Sink:
    trackio: Any = _package("trackio")
    trackio.init(project=spec.tracking.project, name=run.name, config=to_dict(spec))
    return Sink(log=lambda values, step: trackio.log(values, step=step), close=trackio.finish)


def _wandb(spec: RunSpec, run: Path) -> Sink:
    wandb: Any = _package("wandb")
    session = wandb.init(project=spec.tracking.project, name=run.name, config=to_dict(spec), dir=str(run))
    return Sink(log=lambda values, step: session.log(values, step=step), close=session.finish)


def _tensorboard(spec: RunSpec, run: Path) -> Sink:
    _package("tensorboard")
    from torch.utils.tensorboard.writer import SummaryWriter

    writer = SummaryWriter(log_dir=str(run / "tensorboard"))

    def log(values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return Sink(log=log, close=writer.close)


_OPENERS: dict[str, Callable[[RunSpec, Path], Sink]] = {
    "trackio": _trackio,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise SpecError(f"--track {name}: its package is not installed; pip install '.[track]'") from error
