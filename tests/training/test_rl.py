"""The RL loop learns, resumes bitwise, and many slots are many runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lowregret.batches import Completion, Rollout, RolloutGroup
from lowregret.cli.machine import device_facts
from lowregret.data.problems import ProblemData, load_problems
from lowregret.data.tokenizer import TextTokenizer
from lowregret.models.locate import ModelFolder, locate_model
from lowregret.planner.resolve import resolve
from lowregret.planner.shapes import read_shape
from lowregret.specs import (
    AdapterSpec,
    DataSpec,
    FullSpec,
    HardwareSpec,
    ModelSpec,
    OptimSpec,
    PolicyGradientSpec,
    Problem,
    RewardSpec,
    RLSpec,
    RunSpec,
    SamplingSpec,
    Score,
    SlotSpec,
    TrainSpec,
)
from lowregret.store import RunDirectory, collect_environment
from lowregret.store.rows import PolicyRow
from lowregret.training.progress import Silent, StepReport
from lowregret.training.rl import RLSlotResult, train_rl
from lowregret.training.rl_rows import reward_bits
from lowregret.training.sft import Interrupted
from tiny_folder import tiny_model_folder, write_questions

STEPS = 6
RL = RLSpec(rewards=(RewardSpec(source="exact"),), group=4, sampling=SamplingSpec(max_new_tokens=3, rows=16))


class Ascii:
    """1 where the first character of the answer is one of ASCII: about half of the time at first."""

    def score(self, answers: Sequence[tuple[Problem, str]]) -> list[Score]:
        return [Score(value=float(text[:1].isascii())) for _, text in answers]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rl")
    tiny_model_folder(root / "model", tied=False)
    write_questions(root / "data.jsonl", 60)
    return root


def lora(name: str, rank: int = 2, *, lr: float = 3e-3, seed: int = 0) -> SlotSpec:
    return SlotSpec(name=name, weights=AdapterSpec(rank=rank, init_seed=seed), optim=OptimSpec(lr=lr), data_seed=seed)


def spec_of(root: Path, slots: Sequence[SlotSpec], rl: RLSpec = RL, **train: Any) -> RunSpec:
    train_spec = replace(TrainSpec(steps=STEPS, batch_size=3, eval_every=3, checkpoint_every=2), **train)
    return RunSpec(
        task="rl",
        model=ModelSpec(source=str(root / "model")),
        data=DataSpec(source=str(root / "data.jsonl"), validation_size=4, test_size=5),
        slots=tuple(slots),
        train=train_spec,
        rl=rl,
        hardware=HardwareSpec(device="cpu", dtype="fp32", threads=1),
    )


def found(spec: RunSpec) -> tuple[ModelFolder, ProblemData]:
    assert spec.rl is not None
    model = locate_model(spec.model)
    return model, load_problems(spec.data, spec.rl, TextTokenizer.from_folder(model.path))


def made(spec: RunSpec, out: Path) -> RunDirectory:
    model, data = found(spec)
    plan = resolve(spec, shape=read_shape(model.path), facts=data.facts, hardware=device_facts("cpu"))
    return RunDirectory.create(
        out, spec=spec, plan=plan, environment=collect_environment(threads=1, device="cpu", command=[])
    )


def trained(run: RunDirectory, listener: Silent | None = None) -> dict[str, RLSlotResult]:
    model, data = found(run.spec)
    with run:
        run.acquire()
        return train_rl(run, model=model, data=data, scorer=Ascii(), listener=listener or Silent())


def rows_of(run: RunDirectory) -> list[PolicyRow]:
    return [row.untimed() for row in run.read_policy()]


def weights_of(run: RunDirectory, slot: str) -> dict[str, torch.Tensor]:
    latest = run.latest_checkpoint(on_skip=pytest.fail)
    assert latest is not None
    return load_file(latest[1] / f"{slot}.safetensors")


class StopAfter(Silent):
    """Asks the run to stop, as Ctrl-C does, once a step is reported."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, report: StepReport) -> None:
        if report.step == self._step:
            os.kill(os.getpid(), 2)


SLOTS = (lora("a"), lora("b", 4, lr=1e-3, seed=1))
FULL = SlotSpec(name="full", weights=FullSpec(), optim=OptimSpec(lr=1e-3))


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_stopped_run_goes_on_bitwise(folder: Path, tmp_path: Path, stop: int) -> None:
    spec = spec_of(folder, (*SLOTS, FULL))
    whole = made(spec, tmp_path / "whole")
    trained(whole)
    stopped = made(spec, tmp_path / "stopped")
    with pytest.raises(Interrupted):
        trained(stopped, StopAfter(stop))
    again = RunDirectory.open(tmp_path / "stopped")
    trained(again)
    assert rows_of(again) == rows_of(whole)
    assert again.read_accuracy() == whole.read_accuracy()
    assert again.read_rollouts() == whole.read_rollouts()
    for slot in ("a", "b", "full"):
        mine, theirs = weights_of(again, slot), weights_of(whole, slot)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_many_slots_are_many_runs(folder: Path, tmp_path: Path) -> None:
    together = made(spec_of(folder, SLOTS), tmp_path / "together")
    trained(together)
    for slot in SLOTS:
        alone = made(spec_of(folder, [slot]), tmp_path / slot.name)
        trained(alone)
        theirs = [row for row in rows_of(together) if row.slot == slot.name]
        for mine, other in zip(rows_of(alone), theirs, strict=True):
            assert (mine.reward, mine.without_signal, mine.mean_length) == (
                other.reward,
                other.without_signal,
                other.mean_length,
            )
            assert mine.entropy == pytest.approx(other.entropy, abs=1e-5)
        mine, others = weights_of(alone, slot.name), weights_of(together, slot.name)
        for key in ("a.value", "b.value"):
            difference = (mine[key] - others[key]).norm() / mine[key].norm()
            assert difference < 1e-4, key


def test_it_learns_and_says_so(folder: Path, tmp_path: Path) -> None:
    # The head of a new model has small weights, which bound every logit: unless it is adapted, nothing is learned.
    adapter = SlotSpec(name="r1", weights=AdapterSpec(rank=1, unembed=True), optim=OptimSpec(lr=1e-2))
    full = replace(FULL, optim=OptimSpec(lr=1e-2))
    spec = spec_of(folder, [adapter, full], steps=30, batch_size=8, eval_every=30)
    run = made(spec, tmp_path / "run")
    results = trained(run)
    for slot, result in results.items():
        rewards = [row.reward for row in rows_of(run) if row.slot == slot]
        assert sum(rewards[-5:]) / 5 > sum(rewards[:3]) / 3 + 0.3, slot
        assert not result.diverged
        assert not result.collapsed
    assert run.summary is not None
    assert run.summary["slots"]["r1"]["final_accuracy"].keys() == {"validation", "test"}
    assert (run.adapter_folder("r1") / "adapter_model.safetensors").is_file()
    shown = run.read_rollouts()
    assert {0, 30} <= {row.step for row in shown}
    assert all(row.prompt and row.answer for row in shown)


def test_bits_and_groups_without_signal_are_counted(folder: Path, tmp_path: Path) -> None:
    run = made(spec_of(folder, [lora("a")], steps=3), tmp_path / "run")
    trained(run)
    for row in rows_of(run):
        assert row.groups == 3
        assert 0 <= row.without_signal <= 3
        assert 0 <= row.bits <= row.completions
        assert (row.bits == 0) == (row.without_signal == row.groups)
        assert row.ratio_mean == pytest.approx(1.0, abs=1e-4) or row.without_signal == row.groups


def test_dynamic_replaces_groups_without_signal(folder: Path, tmp_path: Path) -> None:
    plain = made(spec_of(folder, [lora("a")], replace(RL, group=2)), tmp_path / "plain")
    dynamic = made(spec_of(folder, [lora("a")], replace(RL, group=2, dynamic=3)), tmp_path / "dynamic")
    trained(plain)
    trained(dynamic)
    assert sum(row.without_signal for row in rows_of(dynamic)) < sum(row.without_signal for row in rows_of(plain))
    assert sum(row.resampled for row in rows_of(dynamic)) > 0
    for row in rows_of(dynamic):
        assert row.groups == 3
        assert row.completions == 2 * (row.groups + row.resampled)


def test_several_updates_a_batch_leave_ratio_one(folder: Path, tmp_path: Path) -> None:
    rl = replace(RL, updates_per_batch=3, objective=PolicyGradientSpec(clip_low=0.2, clip_high=0.2))
    run = made(spec_of(folder, [lora("a", lr=3e-2)], rl), tmp_path / "run")
    trained(run)
    ratios = [row.ratio_max for row in rows_of(run) if row.grad_norm]
    assert any(ratio is not None and abs(ratio - 1) > 1e-3 for ratio in ratios)


def test_the_base_is_at_no_distance_from_a_new_adapter(folder: Path, tmp_path: Path) -> None:
    rl = replace(RL, eval_samples=2, judge_by="sampled", objective=PolicyGradientSpec(kl=0.05))
    run = made(spec_of(folder, [lora("a", lr=3e-2)], rl), tmp_path / "run")
    results = trained(run)
    rows = rows_of(run)
    assert {row.step for row in run.read_accuracy() if row.how == "greedy"} == {0, STEPS}
    assert rows[0].kl == pytest.approx(0.0, abs=1e-5)
    assert rows[-1].kl is not None
    assert abs(rows[-1].kl) > 1e-4  # an estimate from few tokens, so it may be below 0
    sampled = [row for row in run.read_accuracy() if row.how == "sampled" and row.split == "test"]
    assert [row.step for row in sampled if row.slot == "a"] == [0, 1, 2, 3, 4, 6]
    assert sampled[-1].kl is not None
    assert results["a"].final["test"] == sampled[-1].accuracy


def test_a_slot_that_diverges_leaves_the_others_alone(folder: Path, tmp_path: Path) -> None:
    calm = made(spec_of(folder, [lora("a")]), tmp_path / "calm")
    trained(calm)
    wild = made(spec_of(folder, [lora("a"), lora("wild", lr=1e35)]), tmp_path / "wild")
    results = trained(wild)
    assert results["wild"].diverged
    assert not results["a"].diverged
    theirs = [row for row in rows_of(wild) if row.slot == "a"]
    assert [row.reward for row in theirs] == [row.reward for row in rows_of(calm)]


def test_rounding_goes_on_where_it_was_with_several_updates_a_batch(folder: Path, tmp_path: Path) -> None:
    """The bf16 copy of full fine-tuning is rounded by the number of updates, and a step without a signal is none."""
    rl = replace(RL, updates_per_batch=2, group=2)
    spec = spec_of(folder, [FULL], rl)
    spec = replace(spec, hardware=replace(spec.hardware, dtype="bf16"))
    whole = made(spec, tmp_path / "whole")
    trained(whole)
    assert any(row.grad_norm == 0 for row in rows_of(whole)) or any(row.without_signal for row in rows_of(whole))
    stopped = made(spec, tmp_path / "stopped")
    with pytest.raises(Interrupted):
        trained(stopped, StopAfter(3))
    again = RunDirectory.open(tmp_path / "stopped")
    trained(again)
    assert rows_of(again) == rows_of(whole)


def test_bits_of_graded_rewards_are_counted() -> None:
    said = Completion(tokens=np.array([1]), logprobs=np.array([-1.0], dtype=np.float32), stopped=True)

    def group(*rewards: float) -> RolloutGroup:
        rollouts = tuple(Rollout(completion=said, text="", reward=reward, failure="") for reward in rewards)
        return RolloutGroup(problem=0, prompt=(1,), rollouts=rollouts)

    assert reward_bits(group(0.0, 0.0, 0.0, 0.0)) == 0.0
    assert reward_bits(group(0.0, 1.0, 0.0, 1.0)) == pytest.approx(4.0)
    assert reward_bits(group(0.0, 0.25, 0.5, 0.0)) == pytest.approx(4 * 1.5)
    assert not group(0.3, 0.1 + 0.2).has_signal
