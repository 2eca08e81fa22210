"""Reinforcement learning with verifiable rewards: every slot of a run, one batch of rollouts after another.

`train_rl` is the outline; what it calls stands below it in the order of the calls. Each slot answers the same problems
with its own weights, all slots of a bank in one batch; the trainer's weights are the sampler's. The flat version is
`recipes/rl_loop.py`, and a test shows that both give the same rewards and weights.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lowregret.batches import RolloutGroup
from lowregret.data.order import ExampleOrder
from lowregret.data.problems import ProblemData, PromptProblem
from lowregret.data.tokenizer import TextTokenizer
from lowregret.models.locate import ModelFolder
from lowregret.sampling.engine import Engine
from lowregret.sampling.rollouts import Scores, rollout_groups, rollout_seed
from lowregret.specs import ResolvedPlan, SamplingSpec
from lowregret.specs.rl import COLLAPSED
from lowregret.store.rows import AccuracyRow, RolloutRow
from lowregret.store.run import RunDirectory
from lowregret.training import checkpoint
from lowregret.training.adapters_out import write_adapters
from lowregret.training.divergence import mean_divergence
from lowregret.training.evaluate import BASE, evaluation_steps
from lowregret.training.memory import peak_memory_bytes, release_freed_memory
from lowregret.training.metrics import Meter
from lowregret.training.optimizer import schedule_factor
from lowregret.training.policy_step import PolicyStep, policy_step
from lowregret.training.progress import EvalReport, ProgressListener, StepReport
from lowregret.training.rl_rows import Drawn, How, accuracy_row, policy_row
from lowregret.training.sft import Interrupted
from lowregret.training.signals import StopRequest
from lowregret.training.state import Lane, RunState, build_state

Groups = dict[str, list[RolloutGroup]]
"""By slot."""
KL_PROBLEMS = 64
"""Held-out problems on whose completions divergence from the base is measured: it takes two forwards of each."""


@dataclass(frozen=True, kw_only=True)
class RLSlotResult:
    """How one slot ended: accuracies by split, of greedy or sampled answers as `rl.judge_by` says.

    >>> RLSlotResult(initial={"test": 0.4}, final={"test": 0.9}, best={"test": 0.92}, diverged=False).collapsed
    False
    """

    initial: dict[str, float]
    final: dict[str, float]
    """Empty where the slot diverged."""
    best: dict[str, float]
    """The highest of all evaluations: biased upwards, and no substitute for the final one."""
    diverged: bool

    @property
    def collapsed(self) -> bool:
        """It was much better before its end, on any split."""
        return any(self.final.get(split, 0.0) < COLLAPSED * best for split, best in self.best.items())


def train_rl(
    run: RunDirectory,
    *,
    model: ModelFolder,
    data: ProblemData,
    scorer: Scores,
    listener: ProgressListener,
    keep_last: bool = True,
) -> dict[str, RLSlotResult]:
    """Train every slot of the run to its last step, from its latest checkpoint where it has one.

    Args:
        keep_last: save the state after the last step too, from which full fine-tuning is exported.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the step under way was finished and checkpointed.
        CheckpointError: the checkpoint does not fit the spec.
    """
    plan = run.plan
    state = build_state(plan, model, notify=listener.on_message)
    due = evaluation_steps(plan.steps, plan.spec.train.eval_every, early=plan.spec.train.eval_early)
    job = _Job(run=run, plan=plan, model=model, data=data, scorer=scorer, listener=listener, due=due)
    with StopRequest() as stop:
        if not checkpoint.resume(run, state, listener.on_message):
            job.evaluate(state)
        while state.step < plan.steps and state.live:
            job.step(state)
            if state.step in due:
                job.evaluate(state)
            last = state.step == plan.steps or not state.live
            if stop.requested or (keep_last if last else state.step % plan.spec.train.checkpoint_every == 0):
                checkpoint.keep(run, state)
            if stop.requested and not last:
                raise Interrupted(f"stopped after step {state.step} of {plan.steps}")
    write_adapters(run, state, model)
    return job.finish(state)


class _Job:
    """The parts of one run that every phase of the loop needs."""

    def __init__(
        self,
        *,
        run: RunDirectory,
        plan: ResolvedPlan,
        model: ModelFolder,
        data: ProblemData,
        scorer: Scores,
        listener: ProgressListener,
        due: frozenset[int],
    ) -> None:
        assert plan.spec.rl is not None
        self.run, self.plan, self.rl, self.data = run, plan, plan.spec.rl, data
        self.scorer, self.listener = scorer, listener
        self.meter = Meter(plan.steps, due)
        self.tokenizer = TextTokenizer.from_folder(model.path)
        self.engine = Engine(model, self.tokenizer)
        self.data_seed = {slot.name: slot.data_seed for slot in plan.spec.slots}
        self.full_reward = sum(max(0.0, reward.weight) for reward in self.rl.rewards)

    def step(self, state: RunState) -> None:
        """Sample, score, learn and log, for every live slot."""
        started = time.monotonic()
        factor = schedule_factor(self.plan.spec.train.schedule, state.step + 1, self.plan.steps)
        sampled: dict[str, Drawn] = {}
        learned: dict[str, PolicyStep] = {}
        for lane in state.lanes:
            if lane.live:
                own = self.sample(lane, state.step)
                learned |= self.learn(lane, {slot: s.groups for slot, s in own.items()}, factor)
                sampled |= own
        state.step += 1
        rows = [
            policy_row(
                slot,
                drawn,
                learned[slot],
                step=state.step,
                lr=factor * (state.lane_of(slot).optimizers[slot].spec.lr or 0.0),
                full_reward=self.full_reward,
            )
            for slot, drawn in sampled.items()
        ]
        self.meter.add_step(sum(row.tokens for row in rows), time.monotonic() - started)
        self.run.append_policy([replace(row, seconds=self.meter.step_seconds) for row in rows])
        for slot in (slot for slot, step in learned.items() if step.diverged):
            self.listener.on_message(f"slot {slot} diverged at step {state.step} and was retired; lower its lr")
        self.listener.on_step(
            StepReport(
                step=state.step,
                steps=self.plan.steps,
                losses={row.slot: row.reward for row in rows},
                tokens_per_second=self.meter.tokens_per_second,
                seconds_left=self.meter.seconds_left(state.step),
                measure="reward",
            )
        )

    def sample(self, lane: Lane, step: int) -> dict[str, Drawn]:
        """Every live slot's groups for a step (from 0); with `dynamic`, groups without signal are replaced."""
        size = self.plan.spec.train.batch_size
        sampled = {slot: Drawn() for slot in lane.live}
        wanted = dict.fromkeys(lane.live, size)
        for turn in range(1 + self.rl.dynamic):
            indices = {
                slot: ExampleOrder(len(self.data.train), self.order_seed(slot, turn)).batch(step, size)[:missing]
                for slot, missing in wanted.items()
                if missing
            }
            if not indices:
                break
            groups = self.groups(lane, self.rl.sampling, self.data.train, indices, self.rl.group, (step, turn))
            for slot, own in groups.items():
                sampled[slot].add(own, replace_dull=turn < self.rl.dynamic, size=size)
                wanted[slot] = size - len(sampled[slot].groups)
        release_freed_memory(lane.model.device)
        return sampled

    def order_seed(self, slot: str, turn: int) -> int:
        """Seed of a slot's order of the problems; each round of replacements has an order of its own."""
        return self.data_seed[slot] if turn == 0 else rollout_seed(self.data_seed[slot], turn) >> 1

    def groups(
        self,
        lane: Lane,
        spec: SamplingSpec,
        problems: Sequence[PromptProblem],
        indices: Mapping[str, np.ndarray],
        size: int,
        numbers: tuple[int, ...],
    ) -> Groups:
        """Scored groups of `size` completions; seeds depend on the slot's data seed, the numbers and the problem."""
        wanted = {
            None if slot == BASE else slot: [
                (index, problems[index], self.seeds(slot, (*numbers, index), size)) for index in own.tolist()
            ]
            for slot, own in indices.items()
        }
        sampler = self.engine.sampler(lane.model, spec)
        groups = rollout_groups(sampler, self.scorer, self.tokenizer, wanted)
        return {slot or BASE: own for slot, own in groups.items()}

    def seeds(self, slot: str, numbers: tuple[int, ...], size: int) -> tuple[int, ...]:
        first = rollout_seed(self.data_seed.get(slot, 0), *numbers)
        return tuple(first + index for index in range(size))

    def learn(self, lane: Lane, groups: Groups, factor: float) -> dict[str, PolicyStep]:
        """`updates_per_batch` optimizer steps, each on its share of the groups."""
        number = self.rl.updates_per_batch
        learned: dict[str, PolicyStep] = {}
        for part in range(number):
            own = {slot: g[part::number] for slot, g in groups.items() if slot in lane.live}
            done = policy_step(
                lane.model,
                own,
                lane.optimizers,
                self.rl,
                tokens_per_microbatch=self.plan.tokens_per_microbatch,
                factor=factor,
            )
            learned |= {
                slot: learned[slot].followed_by(step) if slot in learned else step for slot, step in done.items()
            }
        return learned

    def evaluate(self, state: RunState) -> None:
        """Accuracy of every live slot on both held-out splits; at step 0 the base stands for all (B = 0)."""
        started = time.monotonic()
        hows: list[tuple[How, SamplingSpec, int]] = [("greedy", replace(self.rl.sampling, temperature=0.0), 1)]
        if self.rl.eval_samples:
            hows.append(("sampled", self.rl.sampling, self.rl.eval_samples))
        if 0 < state.step < self.plan.steps:
            # On the way only what is judged: the other kind is of interest before and after.
            hows = [how for how in hows if how[0] == self.rl.judge_by]
        for split, problems in (("validation", self.data.validation), ("test", self.data.test)):
            for how, spec, size in hows:
                found: dict[str, AccuracyRow] = {}
                for lane in state.lanes if state.step else state.lanes[:1]:
                    slots = lane.live if state.step else (BASE,)
                    if not slots:
                        continue
                    indices = dict.fromkeys(slots, np.arange(len(problems)))
                    groups = self.groups(lane, spec, problems, indices, size, (state.step, -1))
                    for slot, own in groups.items():
                        kl = self.divergence(lane, slot, own) if (how == "sampled" and state.step) else None
                        found[slot] = accuracy_row(
                            slot, own, step=state.step, split=split, how=how, kl=kl, full_reward=self.full_reward
                        )
                        if split == "test" and how == hows[-1][0]:
                            self.keep(state.step, slot, own)
                    release_freed_memory(lane.model.device)
                if not state.step:
                    found |= {slot: replace(found[BASE], slot=slot) for slot in state.live}
                self.run.append_accuracy(found.values())
                if how == self.rl.judge_by:
                    accuracy = {slot: row.accuracy for slot, row in found.items()}
                    report = EvalReport(step=state.step, split=split, nll=accuracy, measure="accuracy")
                    self.listener.on_eval(report)
        self.meter.add_evaluation(time.monotonic() - started)

    def divergence(self, lane: Lane, slot: str, groups: Sequence[RolloutGroup]) -> float | None:
        """Mean of log p - log p_base on some of a slot's sampled completions."""
        return mean_divergence(
            lane,
            slot,
            groups[:KL_PROBLEMS],
            tokens_per_microbatch=self.plan.tokens_per_microbatch,
            temperature=self.rl.sampling.temperature,
        )

    def keep(self, step: int, slot: str, groups: Sequence[RolloutGroup]) -> None:
        """A few completions for the reader, of the same problems every time."""
        rows: list[RolloutRow] = []
        for group in groups[: self.plan.spec.train.num_samples]:
            said, problem = group.rollouts[0], self.data.test[group.problem]
            rows.append(
                RolloutRow(
                    step=step,
                    slot=slot,
                    problem=group.problem,
                    prompt=self.tokenizer.decode(list(group.prompt)),
                    answer=problem.problem.answer,
                    completion=said.text,
                    reward=said.reward,
                    tokens=said.completion.num_tokens,
                    stopped=said.completion.stopped,
                    failure=said.failure,
                )
            )
        self.run.append_rollouts(rows)

    def finish(self, state: RunState) -> dict[str, RLSlotResult]:
        """Sum up from the run's own logs and mark the run as finished."""
        judged = [row for row in self.run.read_accuracy() if row.how == self.rl.judge_by]
        results: dict[str, RLSlotResult] = {}
        for slot in self.data_seed:
            own = [row for row in judged if row.slot == slot]
            live = slot in state.live
            results[slot] = RLSlotResult(
                initial={row.split: row.accuracy for row in own if row.step == 0},
                final={row.split: row.accuracy for row in own if row.step == state.step} if live else {},
                best={row.split: max(r.accuracy for r in own if r.split == row.split) for row in own},
                diverged=not live,
            )
        self.run.mark_finished(
            {
                "steps": state.step,
                "seconds": round(self.meter.seconds, 3),
                "tokens": self.meter.tokens,
                "peak_memory_bytes": peak_memory_bytes(torch.device(self.plan.device)),
                "slots": {
                    slot: {
                        "initial_accuracy": result.initial,
                        "final_accuracy": result.final,
                        "best_accuracy": result.best,
                        "diverged": result.diverged,
                        "collapsed": result.collapsed,
                    }
                    for slot, result in results.items()
                },
            }
        )
        return results
