"""Supervised fine-tuning: every slot of a run, one step after another.

`train` is the outline; what it calls stands below it in the order of the calls. The flat version is
`recipes/sft_loop.py`, and a test shows that both give the same losses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from lowregret.adapters.bank import AdapterBank
from lowregret.batches import PackedBatch, TokenizedExample
from lowregret.data.examples import ExampleStore
from lowregret.data.load import TokenizedData
from lowregret.data.order import ExampleOrder
from lowregret.data.packing import example_of, examples_of, microbatches
from lowregret.models.locate import ModelFolder
from lowregret.specs import ResolvedPlan
from lowregret.store.rows import EvalRow, MetricRow
from lowregret.store.run import RunDirectory
from lowregret.training import checkpoint
from lowregret.training.adapters_out import write_adapters
from lowregret.training.dominated import dominated_slots
from lowregret.training.dynamics import dynamics_rows
from lowregret.training.evaluate import BASE, HeldOut, evaluate, evaluation_steps
from lowregret.training.fidelity import FidelityMeter
from lowregret.training.memory import peak_memory_bytes
from lowregret.training.metrics import Meter
from lowregret.training.optimizer import schedule_factor
from lowregret.training.progress import EvalReport, ProgressListener, StepReport
from lowregret.training.samples import When, write_samples
from lowregret.training.signals import StopRequest
from lowregret.training.state import Lane, RunState, build_state
from lowregret.training.step import SlotStep, train_step


class Interrupted(Exception):
    """The run was asked to stop; its state is in a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class SlotResult:
    """How one slot ended.

    >>> SlotResult(initial={"test": 1.5}, final={"test": 1.2}, diverged=False).final["test"]
    1.2
    """

    initial: dict[str, float]
    """Held-out NLL by split before training, nats per completion token."""
    final: dict[str, float]
    """The same after the last step; empty where the slot diverged before any evaluation."""
    diverged: bool
    stopped: bool = False
    """It was dominated by another rate (`training/dominated.py`) and left early, with a finite loss."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended.

    >>> RunResult(slots={}, steps=10, seconds=2.0, tokens=100, peak_memory_bytes=1).steps
    10
    """

    slots: dict[str, SlotResult]
    steps: int
    seconds: float
    """Of the process that finished the run, loading included."""
    tokens: int
    """Trained on by that process, all slots."""
    peak_memory_bytes: int


def train(
    run: RunDirectory,
    *,
    model: ModelFolder,
    data: TokenizedData,
    listener: ProgressListener,
    also_eval: Mapping[str, ExampleStore] = MappingProxyType({}),
    keep_last: bool = True,
) -> RunResult:
    """Train every slot of the run to its last step, from its latest checkpoint where it has one.

    Args:
        also_eval: further held-out data by name, whose NLL is reported: what is forgotten.
        keep_last: save the state after the last step too, from which full fine-tuning is exported.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the step under way was finished and checkpointed.
        CheckpointError: the checkpoint does not fit the spec.
    """
    plan = run.plan
    state = build_state(plan, model, notify=listener.on_message)
    due = evaluation_steps(plan.steps, plan.spec.train.eval_every, early=plan.spec.train.eval_early)
    meter = Meter(plan.steps, due)
    job = _Job(run=run, plan=plan, data=data, listener=listener, meter=meter, model=model, also_eval=also_eval)
    with StopRequest() as stop:
        if not checkpoint.resume(run, state, listener.on_message):
            job.evaluate(state)
            job.sample(state, "before")
        while state.step < plan.steps and state.live:
            reports = job.step(state)
            job.log(state, reports)
            if state.step in due:
                job.evaluate(state)
                job.drop_dominated(state)
            if state.step in plan.spec.train.fidelity_at:
                job.measure_fidelity(state)
            last = state.step == plan.steps or not state.live
            if stop.requested or (keep_last if last else state.step % plan.spec.train.checkpoint_every == 0):
                checkpoint.keep(run, state)
            if stop.requested and not last:
                raise Interrupted(f"stopped after step {state.step} of {plan.steps}")
    job.sample(state, "after")
    write_adapters(run, state, model)
    return job.finish(state)


class _Job:
    """The parts of one run that every phase of the loop needs."""

    def __init__(
        self,
        *,
        run: RunDirectory,
        plan: ResolvedPlan,
        data: TokenizedData,
        listener: ProgressListener,
        meter: Meter,
        model: ModelFolder,
        also_eval: Mapping[str, ExampleStore],
    ) -> None:
        self.run, self.plan, self.data = run, plan, data
        self.listener, self.meter, self.model = listener, meter, model
        seeds = {slot.data_seed for slot in plan.spec.slots}
        self.orders = {seed: ExampleOrder(len(data.train), seed) for seed in seeds}
        self.held_out = {"validation": examples_of(data.validation), "test": examples_of(data.test)}
        self.held_out |= {name: examples_of(store) for name, store in also_eval.items()}
        self.fidelity: FidelityMeter | None = None
        if plan.spec.train.fidelity_at:
            self.fidelity = FidelityMeter(model, self.held_out["validation"], plan.tokens_per_microbatch)

    def step(self, state: RunState) -> dict[str, SlotStep]:
        """One optimizer step of every live slot."""
        started = time.monotonic()
        factor = schedule_factor(self.plan.spec.train.schedule, state.step + 1, self.plan.steps)
        reports: dict[str, SlotStep] = {}
        for lane in state.lanes:
            if lane.live:
                batches = self.batches(lane, state.step)
                reports |= train_step(lane.model, batches, lane.optimizers, factor=factor)
        state.step += 1
        self.meter.add_step(sum(report.tokens for report in reports.values()), time.monotonic() - started)
        return reports

    def batches(self, lane: Lane, step: int) -> list[PackedBatch]:
        """The micro-batches of a step (from 0): every live slot's examples in its own order."""
        by_slot: dict[str, list[TokenizedExample]] = {}
        for slot in self.plan.spec.slots:
            if slot.name in lane.live:
                indices = self.orders[slot.data_seed].batch(step, self.plan.spec.train.batch_size)
                by_slot[slot.name] = [example_of(self.data.train, int(index)) for index in indices]
        return microbatches(by_slot, self.plan.tokens_per_microbatch)

    def log(self, state: RunState, reports: dict[str, SlotStep]) -> None:
        """One line a slot in metrics.jsonl, and the display."""
        factor = schedule_factor(self.plan.spec.train.schedule, state.step, self.plan.steps)
        rows: list[MetricRow] = []
        for slot, report in reports.items():
            lr = (state.lane_of(slot).optimizers[slot].spec.lr or 0.0) * factor
            rows.append(
                MetricRow(
                    step=state.step,
                    slot=slot,
                    loss=report.loss,
                    tokens=report.tokens,
                    completion_tokens=report.completion_tokens,
                    lr=lr,
                    grad_norm=report.grad_norm,
                    seconds=self.meter.step_seconds,
                )
            )
            if report.diverged:
                self.listener.on_message(f"slot {slot} diverged at step {state.step} and was retired; lower its lr")
        self.run.append_metrics(rows)
        self.listener.on_step(
            StepReport(
                step=state.step,
                steps=self.plan.steps,
                losses={slot: report.loss for slot, report in reports.items()},
                tokens_per_second=self.meter.tokens_per_second,
                seconds_left=self.meter.seconds_left(state.step),
            )
        )

    def evaluate(self, state: RunState) -> None:
        """NLL of every live slot on every held-out split; at step 0 the base stands for all of them (B = 0)."""
        started = time.monotonic()
        for split, examples in self.held_out.items():
            found: dict[str, HeldOut] = {}
            for lane in state.lanes if state.step else state.lanes[:1]:
                slots = lane.live if state.step else (BASE,)
                found |= evaluate(lane.model, examples, slots, self.plan.tokens_per_microbatch)
            if not state.step:
                found |= dict.fromkeys(state.live, found[BASE])
            self.run.append_evals(
                [
                    EvalRow(step=state.step, slot=slot, split=split, nll=held.nll, tokens=held.tokens)
                    for slot, held in found.items()
                ]
            )
            nll = {slot: held.nll for slot, held in found.items()}
            self.listener.on_eval(EvalReport(step=state.step, split=split, nll=nll))
        if self.plan.spec.train.dynamics:
            for lane in state.lanes:
                if isinstance(lane.trainable, AdapterBank):
                    self.run.append_dynamics(dynamics_rows(lane.model, self.held_out["validation"], state.step))
        self.meter.add_evaluation(time.monotonic() - started)

    def measure_fidelity(self, state: RunState) -> None:
        """How much of each live slot's update every bf16 arithmetic lets act; training is not touched by it."""
        assert self.fidelity is not None
        for lane in state.lanes:
            self.run.append_fidelity(self.fidelity.rows(lane, state.step))

    def drop_dominated(self, state: RunState) -> None:
        """Retire the slots that the sweep can do without."""
        for slot in self.dominated(state.step):
            if slot in state.live and state.step < self.plan.steps:
                state.lane_of(slot).trainable.retire(slot)
                self.listener.on_message(f"slot {slot} stopped at step {state.step}: another rate is surely better")

    def dominated(self, step: int) -> tuple[str, ...]:
        """The slots that are dominated at a step, from the run's own logs."""
        factor = self.plan.spec.train.drop_dominated
        if factor is None:
            return ()
        curves: dict[str, dict[int, float]] = {}
        for row in self.run.read_evals():
            if row.split == "validation":
                curves.setdefault(row.slot, {})[row.step] = row.nll
        slots = self.plan.spec.slots
        return dominated_slots(slots, curves, step=step, total_steps=self.plan.steps, factor=factor)

    def sample(self, state: RunState, when: When) -> None:
        """Answers to a few test prompts, for the reader."""
        write_samples(self.run, state, self.held_out["test"], folder=self.model.path, when=when)

    def finish(self, state: RunState) -> RunResult:
        """Sum up from the run's own logs and mark the run as finished."""
        nll: dict[tuple[str, int, str], float] = {(r.slot, r.step, r.split): r.nll for r in self.run.read_evals()}
        slots: dict[str, SlotResult] = {}
        measured = sorted({step for _, step, _ in nll if step < self.plan.steps})
        stopped = {slot for step in measured for slot in self.dominated(step)} - set(state.live)
        for slot in self.plan.spec.slots:
            live = slot.name in state.live
            slots[slot.name] = SlotResult(
                initial={s: nll[slot.name, 0, s] for s in self.held_out},
                final={s: nll[slot.name, state.step, s] for s in self.held_out} if live else {},
                diverged=not live and slot.name not in stopped,
                stopped=slot.name in stopped,
            )
        device = torch.device(self.plan.device)
        result = RunResult(
            slots=slots,
            steps=state.step,
            seconds=self.meter.seconds,
            tokens=self.meter.tokens,
            peak_memory_bytes=peak_memory_bytes(device),
        )
        self.run.mark_finished(summary_of(result))
        return result


def summary_of(result: RunResult) -> dict[str, object]:
    """The result as plain values for the run directory and `--json`."""
    return {
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
        "tokens": result.tokens,
        "peak_memory_bytes": result.peak_memory_bytes,
        "slots": {
            name: {
                "initial_nll": _plain(slot.initial),
                "final_nll": _plain(slot.final),
                "diverged": slot.diverged,
                "stopped": slot.stopped,
            }
            for name, slot in result.slots.items()
        },
    }


def _plain(losses: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: a loss that is no number is null."""
    return {split: nll if math.isfinite(nll) else None for split, nll in losses.items()}
