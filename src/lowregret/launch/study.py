"""Runs a study: asks the questions for cells, packs them into banks, lets them train, until no question asks for more.

Guarantees: what trains together is written down before it starts, so that a study that was killed goes on with the
same banks; a finished cell is never trained again; a worker that dies is replaced and its bank goes on from its last
checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from lowregret.errors import SpecError
from lowregret.launch.banks import Materials, bank_progress, harvest, make_bank, materials
from lowregret.planner.resolve import resolve
from lowregret.specs import (
    DataSpec,
    DeviceFacts,
    ModelSpec,
    PlannedBank,
    PlannedCell,
    RLSpec,
    RunSpec,
    StudyPlan,
    StudySpec,
)
from lowregret.specs.identity import identity
from lowregret.store.environment import Environment
from lowregret.store.study import StudyDirectory
from lowregret.studies.analysis import findings_of_study
from lowregret.studies.arm_builder import ALONE, ArmTemplate, Base
from lowregret.studies.asking import wanted_cells
from lowregret.studies.packing import MOST_SLOTS, pack_cells
from lowregret.studies.questions import arm_templates
from lowregret.studies.reading import outcomes_of


class Executor(Protocol):
    """Trains banks somewhere."""

    def run(self, folders: Mapping[str, str], done: Callable[[str], None]) -> None:
        """Train every bank to its end.

        Args:
            folders: bank -> its run directory.
            done: called with a bank's name as soon as it is finished, from the calling thread.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class StudyProgress:
    """How far a study is.

    >>> progress = StudyProgress(cells_done=3, cells_planned=9, running=2, banks_done=1, banks_planned=3, work_done=3.0,
    ...     work_planned=9.0, seconds=2.0)
    >>> progress.seconds_left
    4.0
    """

    cells_done: int
    cells_planned: int
    """So far: an adaptive grid may ask for more."""
    running: int
    """Cells of the banks that are under way."""
    banks_done: int
    banks_planned: int
    work_done: float
    """Sequences that this process has trained on times the arithmetic of a token, banks under way included."""
    work_planned: float
    """The same of all that was not finished when it began."""
    seconds: float
    """Of this process's part of the study."""

    @property
    def seconds_left(self) -> float:
        """For what is planned so far, at this process's pace; infinite before its first step."""
        return self.seconds / self.work_done * (self.work_planned - self.work_done) if self.work_done else float("inf")


class StudyListener(Protocol):
    """Receives the events of a study. Must not raise."""

    def on_progress(self, progress: StudyProgress) -> None: ...

    def on_message(self, message: str) -> None: ...


Sources = tuple[ModelSpec, DataSpec, RLSpec | None]
"""What materials are found by; RL reads a data set's rows as problems."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every question of a study needs, found once.

    >>> sorted(Context.__dataclass_fields__)
    ['found', 'machine', 'templates']
    """

    found: Mapping[Sources, Materials]
    templates: tuple[tuple[ArmTemplate, ...], ...]
    """By question."""
    machine: DeviceFacts


def prepare(spec: StudySpec, *, machine: DeviceFacts) -> Context:
    """Find bases and data of every question, and build its arms.

    Raises:
        SpecError, ModelError, DataError: a question can't be asked of this base or data.
        CapacityError: one of its arms does not fit; the message names the nearest that does.
    """
    if not spec.questions:
        raise SpecError("questions: a study needs at least one; name a protocol such as rank")
    found: dict[Sources, Materials] = {}
    templates: list[tuple[ArmTemplate, ...]] = []
    for question in spec.questions:
        bases: dict[str, Base] = {}
        for model in question.models or (spec.model,):
            known = _known(found, (model, question.data, question.rl))
            bases[model.source] = Base(shape=known.shape, mean_length=known.data.facts.mean_length)
        arms = arm_templates(question, bases, model=spec.model, hardware=spec.hardware)
        for arm in arms:
            known = _known(found, (arm.run.model, arm.run.data, arm.run.rl))
            # What can't be trained is refused now, and not when its turn comes.
            run = arm.cell(arm.start, question.seeds[0])
            resolve(run, shape=known.shape, facts=known.data.facts, hardware=machine)
        templates.append(arms)
    return Context(found=found, templates=tuple(templates), machine=machine)


def _known(found: dict[Sources, Materials], sources: Sources) -> Materials:
    if sources not in found:
        found[sources] = materials(*sources)
    return found[sources]


def run_study(
    study: StudyDirectory,
    context: Context,
    *,
    executor: Executor,
    environment: Environment,
    listener: StudyListener,
) -> bool:
    """Train every cell that the questions ask for; False where the budget ended it before.

    Raises:
        Interrupted: a signal came; banks under way have their checkpoints.
    """
    study.acquire()
    spec = study.spec
    watch = _Watch(study, listener)
    while True:
        pending = [bank for bank in study.plan.banks if not all(map(study.has_record, bank.cells))]
        if not pending:
            watch.estimates()
            pending = plan_more(study, context)
        if not pending:
            return True
        for batch in _within(pending, spec):
            watch.report()
            if spec.budget_seconds is not None and watch.seconds >= spec.budget_seconds:
                listener.on_message(f"the budget of {spec.budget_seconds:g} s is spent; resume to go on")
                return False
            _train(study, context, batch, executor, environment, watch)


def plan_more(study: StudyDirectory, context: Context) -> list[PlannedBank]:
    """Ask every question what it wants next, and write the answer down as banks."""
    spec, plan = study.spec, study.plan
    asked = {(cell.question, cell.cell) for cell in plan.cells}
    banked = {cell for bank in plan.banks for cell in bank.cells}
    new: list[PlannedCell] = []
    fresh: dict[str, RunSpec] = {}
    alone: set[str] = set()
    for index, (question, templates) in enumerate(zip(spec.questions, context.templates, strict=True)):
        outcomes = outcomes_of(study, index)
        for template, lr, seed in wanted_cells(question, templates, outcomes):
            run = template.cell(lr, seed)
            cell = _identity(run, context)
            if (index, cell) in asked:
                continue
            asked.add((index, cell))
            new.append(PlannedCell(cell=cell, question=index, arm=template.arm, lr=lr, seed=seed))
            if cell not in banked and not study.has_record(cell):
                banked.add(cell)
                fresh[cell] = run
                if question.protocol in ALONE:
                    alone.add(cell)
    if not new:
        return []
    for cell, run in fresh.items():
        study.write_cell_spec(cell, run)
    limit = spec.slots_per_bank or MOST_SLOTS
    together = [(cell, run) for cell, run in fresh.items() if cell not in alone]
    timed = [(cell, run) for cell, run in fresh.items() if cell in alone]
    banks = (
        *pack_cells(together, slots_per_bank=limit, workers=spec.workers),
        *pack_cells(timed, slots_per_bank=1, workers=1),
    )
    study.write_plan(StudyPlan(cells=(*plan.cells, *new), banks=(*plan.banks, *banks)))
    # Where every wanted cell was trained for another question there is nothing to train, but still more to ask.
    return list(banks) or plan_more(study, context)


def _identity(run: RunSpec, context: Context) -> str:
    found = context.found[run.model, run.data, run.rl]
    dtype = run.hardware.dtype
    if dtype == "auto":
        dtype = "bf16" if context.machine.bf16_fast else "fp32"
    return identity(
        replace(run, hardware=replace(run.hardware, device=context.machine.kind)),
        model_hash=found.folder.content_hash,
        data_hash=found.data.content_hash,
        dtype=dtype,
        device_class=context.machine.kind,
    )


def _within(banks: Sequence[PlannedBank], spec: StudySpec) -> list[list[PlannedBank]]:
    """Parts of a wave between which a budget is looked at: a few banks for each worker; the whole wave without one."""
    size = len(banks) if spec.budget_seconds is None else max(1, 4 * spec.workers)
    return [list(banks[start : start + size]) for start in range(0, len(banks), size)]


def _train(
    study: StudyDirectory,
    context: Context,
    banks: Sequence[PlannedBank],
    executor: Executor,
    environment: Environment,
    watch: _Watch,
) -> None:
    by_name = {bank.bank: bank for bank in banks}
    for bank in banks:
        run = study.cell_spec(bank.cells[0])
        found = context.found[run.model, run.data, run.rl]
        make_bank(study, bank, found, machine=context.machine, environment=environment)

    def done(name: str) -> None:
        harvest(study, by_name[name])
        watch.report()

    with watch.ticking():
        executor.run({name: str(study.bank_folder(name)) for name in by_name}, done)


TICK_SECONDS = 5.0
"""Between two looks at the logs of banks under way."""


class _Watch:
    """Tells a listener how far a study is, also while banks train."""

    def __init__(self, study: StudyDirectory, listener: StudyListener) -> None:
        self._study, self._listener = study, listener
        self._started = time.monotonic()
        self._before = self._finished()
        self._told = threading.Lock()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def report(self) -> None:
        """Tell how far it is now."""
        with self._told:
            plan, finished = self._study.plan, self._finished()
            cells = {cell.cell: cell.arm for cell in plan.cells}
            work = {cell: arm.steps * arm.batch_size * (arm.multiply_adds or 1.0) for cell, arm in cells.items()}
            open_banks = [bank for bank in plan.banks if not finished.issuperset(bank.cells)]
            shares = {
                bank.bank: bank_progress(self._study.bank_folder(bank.bank), cells[bank.cells[0]].steps)
                for bank in open_banks
            }
            under_way = sum(shares[bank.bank] * sum(work[cell] for cell in bank.cells) for bank in open_banks)
            self._listener.on_progress(
                StudyProgress(
                    cells_done=len(finished),
                    cells_planned=len(cells),
                    running=sum(len(bank.cells) for bank in open_banks if shares[bank.bank] > 0),
                    banks_done=len(plan.banks) - len(open_banks),
                    banks_planned=len(plan.banks),
                    work_done=sum(work[cell] for cell in finished - self._before) + under_way,
                    work_planned=sum(work[cell] for cell in cells.keys() - self._before),
                    seconds=self.seconds,
                )
            )

    def estimates(self) -> None:
        """Tell what the finished cells say so far."""
        for finding in findings_of_study(self._study) if self._finished() else ():
            if finding.estimate is not None and finding.interval is not None:
                low, high = finding.interval
                said = f"{finding.claim}: {finding.quantity} {finding.estimate:.3g} ({low:.3g} to {high:.3g})"
                self._listener.on_message(f"so far, {said}, {finding.verdict}")

    @contextmanager
    def ticking(self) -> Generator[None, None, None]:
        """Report every few seconds from a thread of its own."""
        end = threading.Event()

        def tick() -> None:
            while not end.wait(TICK_SECONDS):
                self.report()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def _finished(self) -> set[str]:
        return {cell.cell for cell in self._study.plan.cells if self._study.has_record(cell.cell)}
