"""What a run of RL shows: verdict, tables, charts and figures come from its logs, and hold text of a model as text."""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lowregret.cli.tables import print_result
from lowregret.report.html import write_report
from lowregret.report.rl_curves import bit_curves, step_series
from lowregret.report.rl_figures import draw_bits, write_rl_figures
from lowregret.report.rl_findings import accuracy_findings, judge
from lowregret.report.tables import runs_table
from lowregret.specs import (
    AdapterSpec,
    DataFacts,
    DataSpec,
    FullSpec,
    Information,
    ModelSpec,
    OptimSpec,
    ResolvedPlan,
    RewardSpec,
    RLSpec,
    RunSpec,
    SlotSpec,
    TrainSpec,
)
from lowregret.store import RunDirectory, collect_environment, list_runs
from lowregret.store.rows import AccuracyRow, PolicyRow, RolloutRow

SLOTS = (
    SlotSpec(name="r1", weights=AdapterSpec(rank=1), optim=OptimSpec(lr=3e-3)),
    SlotSpec(name="r8", weights=AdapterSpec(rank=8), optim=OptimSpec(lr=3e-2)),
    SlotSpec(name="full", weights=FullSpec(), optim=OptimSpec(lr=1e-3)),
)
STEPS, BITS = 40, 200.0
PARAMETERS = {"r1": 576, "r8": 8 * 576}


def accuracy_at(slot: str, step: int) -> float:
    """r1 and full rise to about 0.9; r8 collapses."""
    risen = 0.4 + 0.5 * math.log1p(step) / math.log1p(STEPS) + 0.01 * (slot == "full")
    return 0.1 if slot == "r8" and step == STEPS else risen


def make_rl_run(path: Path, *, text: str = "2 + 2 =", finished: bool = True) -> RunDirectory:
    rl = RLSpec(rewards=(RewardSpec(source="exact"),), group=8)
    spec = RunSpec(
        task="rl",
        model=ModelSpec(source="micro"),
        data=DataSpec(source="max3"),
        slots=SLOTS,
        rl=rl,
        train=TrainSpec(steps=STEPS, batch_size=16),
    )
    plan = ResolvedPlan(
        spec=spec,
        facts=DataFacts(num_examples=1000, num_tokens=5000, num_completion_tokens=8000, longest=6),
        information=Information(units=STEPS * 128, unit="scored samples", bits_per_unit=1.0, reason="rewards"),
        steps=STEPS,
        tokens_per_microbatch=512,
        device="cpu",
        dtype="fp32",
        threads=1,
        derived=(),
        warnings=(),
        memory_bytes={},
    )
    environment = collect_environment(threads=1, command=("lowregret", "rl"))
    run = RunDirectory.create(path, spec=spec, plan=plan, environment=environment)
    last = STEPS if finished else STEPS // 2
    for step in sorted({0, 1, 10, last}):
        names = ("base", *(slot.name for slot in SLOTS)) if step == 0 else tuple(slot.name for slot in SLOTS)
        for split in ("validation", "test"):
            run.append_accuracy(accuracy_row(step, slot, split) for slot in names)
        run.append_rollouts(rollout_row(step, slot, text) for slot in (("base",) if step == 0 else names))
    for step in range(1, last + 1):
        run.append_policy(policy_row(step, slot.name) for slot in SLOTS)
    for slot, number in PARAMETERS.items():
        folder = run.adapter_folder(slot)
        folder.mkdir(parents=True)
        header = json.dumps({"a": {"dtype": "F32", "shape": [number], "data_offsets": [0, 0]}}).encode()
        (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    run.write_data_report({"read": 1000})
    if finished:
        run.mark_finished({"slots": {slot.name: {"diverged": False, "collapsed": slot.name == "r8"} for slot in SLOTS}})
    run.close()
    return run


def accuracy_row(step: int, slot: str, split: str) -> AccuracyRow:
    accuracy = accuracy_at(slot, step)
    return AccuracyRow(
        step=step,
        slot=slot,
        split=split,
        how="greedy",
        accuracy=accuracy,
        reward=accuracy,
        problems=400,
        mean_length=1.0,
        truncated=0.0,
    )


def policy_row(step: int, slot: str) -> PolicyRow:
    reward = accuracy_at(slot, step)
    return PolicyRow(
        step=step,
        slot=slot,
        reward=reward,
        pass_rate=reward,
        objective=0.0,
        lr=3e-3,
        completions=128,
        mean_length=1.5,
        truncated=0.25,
        entropy=1.0 / step,
        without_signal=4,
        groups=16,
        bits=BITS,
    )


def rollout_row(step: int, slot: str, text: str) -> RolloutRow:
    return RolloutRow(
        step=step,
        slot=slot,
        problem=3,
        prompt=f"{text}",
        answer="4",
        completion=f"{text} at step {step}",
        reward=float(step > 0),
        tokens=2,
        stopped=step > 0,
    )


@pytest.fixture
def rl_run(tmp_path: Path) -> RunDirectory:
    return make_rl_run(tmp_path / "run")


def test_the_best_slot_is_chosen_by_validation_at_the_last_step_and_a_collapse_is_named(rl_run: RunDirectory):
    findings = accuracy_findings(rl_run)
    by_slot = {found.slot: found for found in findings}
    assert [found.slot for found in findings] == ["r1", "r8", "full"]
    assert (by_slot["r1"].before, by_slot["r1"].after) == (0.4, pytest.approx(0.9))
    assert (by_slot["r8"].after, by_slot["r8"].ended) == (0.1, "collapsed")
    assert by_slot["r8"].best == pytest.approx(accuracy_at("r8", 10))
    verdict = judge(findings)
    assert (verdict.best, verdict.improved) == ("full", True)
    assert verdict.text.startswith("Held-out accuracy rose from 0.410 to 0.910 with full, the best of 3 slots")
    assert "r1 is within 0.02 of it." in verdict.text
    assert "r8 collapsed." in verdict.text


def test_bits_of_the_rewards_stand_beside_two_a_parameter(rl_run: RunDirectory):
    found = next(found for found in accuracy_findings(rl_run) if found.slot == "r1")
    assert (found.bits, found.capacity) == (STEPS * BITS, 2 * PARAMETERS["r1"])
    curve = next(curve for curve in bit_curves(rl_run.read_policy(), rl_run.plan) if curve.slot == "r1")
    assert (curve.steps[-1], curve.values[0], curve.values[-1]) == (STEPS, BITS, STEPS * BITS)


def test_series_are_what_the_steps_logged(rl_run: RunDirectory):
    policy = rl_run.read_policy()
    series = {one.measure.key: one for one in step_series(policy, rl_run.read_accuracy(), rl_run.plan)}
    # The pass rate is the reward here, and nobody computed a divergence.
    assert list(series) == ["reward", "entropy", "length", "truncated", "without-signal"]
    assert series["entropy"].raw[0].values == tuple(1.0 / step for step in range(1, STEPS + 1))
    assert series["without-signal"].raw[0].values == (0.25,) * STEPS
    drawn = [replace(row, how="sampled", kl=0.1 * row.step) for row in rl_run.read_accuracy()]
    measured = {one.measure.key: one for one in step_series(policy, drawn, rl_run.plan)}
    assert measured["kl"].raw[0].values[-1] == pytest.approx(0.1 * STEPS)


def test_the_page_holds_verdict_charts_and_completions(rl_run: RunDirectory):
    page = write_report(rl_run).read_text()
    for part in (
        "Held-out accuracy rose",
        "40 steps of 16 prompts x 8 completions a slot",
        '<span class="tag bad">collapsed</span>',
        "lowregret rl ",
        "2 + 2 = at step 0",
        "2 + 2 = at step 40",
        "before training, reward 0, 2 tokens, cut off",
        "id=entropy",
        "id=bits",
    ):
        assert part in page, part
    assert "2 + 2 = at step 10" not in page
    found = re.search(r"<script type=application/json id=chart-data>(.*?)</script>", page)
    assert found is not None
    data = json.loads(found[1])
    test = next(part for part in data["heldOut"] if part["split"] == "test")
    assert test["base"] == 0.4
    assert next(c for c in test["curves"] if c["slot"] == "r1")["values"][-1] == pytest.approx(0.9)
    places = {one["id"] for one in data["series"]}
    assert all(f"id={place} " in page for place in places)
    bits = next(one for one in data["series"] if one["id"] == "bits")
    assert {level["name"]: level["value"] for level in bits["levels"]}["r1 holds"] == 2 * PARAMETERS["r1"]


def test_text_of_a_model_never_becomes_markup(tmp_path: Path):
    hostile = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"
    page = write_report(make_rl_run(tmp_path / "run", text=hostile)).read_text()
    assert "<img" not in page
    assert "<script>alert" not in page


def test_a_run_under_way_says_how_to_go_on(tmp_path: Path):
    run = make_rl_run(tmp_path / "run", finished=False)
    page = write_report(run).read_text()
    assert "not finished: step 20 of 40" in page
    assert f"lowregret rl --resume {run.path}" in page
    assert write_rl_figures(run)


def test_a_run_without_a_step_has_a_report_too(tmp_path: Path):
    run = make_rl_run(tmp_path / "run", finished=False)
    with run:
        run.truncate_logs(-1)
    assert "No held-out accuracy" in write_report(run).read_text()
    assert write_rl_figures(run) == ()


def test_figures_are_drawn_as_png_and_svg(rl_run: RunDirectory):
    files = write_rl_figures(rl_run)
    assert {path.name for path in files} == {f"{n}.{k}" for n in ("accuracy", "steps", "bits") for k in ("png", "svg")}
    said = (rl_run.figures / "bits.svg").read_text()
    assert "r1 holds" in said
    assert "full holds" not in said
    silent = [replace(row, bits=0.0) for row in rl_run.read_policy()]
    assert draw_bits(silent, rl_run.plan, accuracy_findings(rl_run)) is None


def test_the_terminal_shows_accuracies(rl_run: RunDirectory, capsys: pytest.CaptureFixture[str]):
    print_result(rl_run, Console(width=120))
    printed = capsys.readouterr().out
    assert "test accuracy" in printed
    assert re.search(r"r8 .*0\.100.*collapsed", printed)
    assert re.search(r"after, r1, reward 1 .*at step 40", printed)
    (entry,) = list_runs(rl_run.path)
    assert (entry.best_slot, entry.test_accuracy, entry.test_nll) == ("full", pytest.approx(0.91), None)
    with (console := Console(width=160)).capture() as capture:
        console.print(runs_table([entry]))
    assert "accuracy 0.910" in capture.get()
