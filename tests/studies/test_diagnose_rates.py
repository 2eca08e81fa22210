"""Rules about learning rates: each on a run that shows the failure and one that does not."""

from __future__ import annotations

import json
import math
from pathlib import Path

from lowregret.planner.resolve import slot_rate
from lowregret.specs import DataSpec
from lowregret.store import RunDirectory
from lowregret.studies.diagnose import view_of
from studies.runs import SHAPE, falling, found, full, logged, lora, trained


def test_a_slot_that_diverges_is_named_with_a_lower_rate(model: Path, sums: DataSpec, tmp_path: Path):
    view = trained(tmp_path / "run", model=model, data=sums, slots=[lora("r4", 4, 1e25), lora("r2", 2, 3e-3)])
    (symptom,) = found(view, "diverged")
    assert (symptom.where, symptom.severity) == ("r4", "serious")
    assert "1e+25" in symptom.seen
    assert symptom.remedy.startswith("--lr ")


def test_a_rate_of_several_that_diverges_is_no_lost_slot(model: Path, sums: DataSpec, tmp_path: Path):
    view = trained(tmp_path / "run", model=model, data=sums, slots=[lora("low", 4, 3e-3), lora("high", 4, 1e25)])
    (symptom,) = found(view, "diverged")
    assert (symptom.where, symptom.severity) == ("high", "warning")
    assert not found(trained(tmp_path / "calm", model=model, data=sums, slots=[lora("low", 4, 3e-3)]), "diverged")


def test_a_slot_that_falls_silent_before_the_summary_was_retired(tmp_path: Path):
    slots = [lora("gone", 4, 1e-2), lora("r8")]
    logged(tmp_path / "run", slots, lambda _, step: falling(step), steps=64)
    log = tmp_path / "run" / "metrics.jsonl"
    rows = [line for line in log.read_text().splitlines() if '"gone"' not in line or json.loads(line)["step"] <= 30]
    log.write_text("".join(line + "\n" for line in rows))
    view = view_of(RunDirectory.open(tmp_path / "run"))
    (symptom,) = found(view, "diverged")
    assert (symptom.where, symptom.severity) == ("gone", "serious")
    assert "retired at step 30 of 64" in symptom.seen


def test_a_rate_that_damages_the_base_is_seen(model: Path, sums: DataSpec, tmp_path: Path):
    view = trained(tmp_path / "run", model=model, data=sums, slots=[full("hot", 1.0), full("tuned", 1e-2)])
    (symptom,) = found(view, "loss-rose")
    assert (symptom.where, symptom.severity) == ("hot", "serious")


def test_a_rise_after_the_minimum_on_new_examples_is_overshooting(tmp_path: Path):
    def rising(slot: str, step: int) -> float:
        return falling(step) + (0.002 * max(0, step - 64) if slot == "hot" else 0.0)

    (symptom,) = found(logged(tmp_path / "run", [lora("hot"), lora("calm")], rising), "loss-rose")
    assert (symptom.where, symptom.severity) == ("hot", "warning")
    assert "at step 64" in symptom.seen


def test_lora_at_the_rate_of_full_fine_tuning(model: Path, sums: DataSpec, tmp_path: Path):
    slots = [lora("slow", 4, 1e-6), lora("fast", 4, 1e-2)]
    view = trained(tmp_path / "run", model=model, data=sums, slots=slots, steps=32)
    (symptom,) = found(view, "lr-at-full-scale")
    assert (symptom.where, symptom.severity) == ("slow", "serious")
    planned = slot_rate(slots[0], view.spec, view.shape, 32).value if view.shape else 0.0
    assert f"--lr {planned:.2g}" in symptom.remedy


def test_a_low_rate_that_learns_as_a_tuned_one_is_left_alone(tmp_path: Path):
    slot = lora("r8", 8, 3e-5)
    assert not found(logged(tmp_path / "tuned", [slot], lambda _, step: falling(step)), "lr-at-full-scale")
    linear = logged(tmp_path / "slow", [slot], lambda _, step: 2.0 - 0.05 * step / 256)
    assert slot_rate(slot, linear.spec, SHAPE, 256).value > 2 * 3e-5
    assert found(linear, "lr-at-full-scale")


def test_the_best_rate_at_the_edge_of_those_tried(model: Path, sums: DataSpec, tmp_path: Path):
    slots = [lora(f"lr{lr:g}", 4, lr) for lr in (1e-5, 1e-4, 1e-3)]
    (symptom,) = found(trained(tmp_path / "run", model=model, data=sums, slots=slots), "lr-on-the-edge")
    assert symptom.where == "r4"
    assert "0.001, the highest one" in symptom.seen
    assert symptom.remedy == "--lr 0.001,0.0032 too"


def test_a_best_rate_between_others_is_no_edge(tmp_path: Path):
    slots = [lora(f"lr{lr:g}", 4, lr) for lr in (1e-4, 3e-4, 1e-3)]
    detuned = {slot.name: 0.1 * abs(math.log((slot.optim.lr or 1) / 3e-4)) for slot in slots}
    view = logged(tmp_path / "run", slots, lambda slot, step: falling(step, by=0.5 - detuned[slot]))
    assert not found(view, "lr-on-the-edge")
    two = logged(tmp_path / "two", slots[:2], lambda slot, step: falling(step, by=0.5 - detuned[slot]))
    assert [symptom.severity for symptom in found(two, "lr-on-the-edge")] == ["note"]
    assert not found(logged(tmp_path / "one", slots[:1], lambda _, step: falling(step)), "lr-on-the-edge")


def test_spikes_of_one_slot_are_its_rate(tmp_path: Path):
    def spiking(slot: str, step: int) -> float:
        noise = 0.05 * math.sin(7.0 * step)
        return falling(step) + noise + (1.5 if slot == "hot" and step in (90, 150, 151) else 0.0)

    view = logged(tmp_path / "run", [lora("hot"), lora("calm", 4)], lambda _, step: falling(step), training=spiking)
    (symptom,) = found(view, "unstable")
    assert symptom.where == "hot"
    assert "3 steps (90, 150, 151)" in symptom.seen


def test_spikes_that_all_slots_share_are_the_data(tmp_path: Path):
    def spiking(slot: str, step: int) -> float:
        return falling(step) + 0.05 * math.sin(7.0 * step) + (1.5 if step in (90, 150) else 0.0)

    view = logged(tmp_path / "run", [lora("a"), lora("b", 4)], lambda _, step: falling(step), training=spiking)
    assert not found(view, "unstable")


def test_bursts_of_the_gradient_norm(tmp_path: Path):
    def bursts(slot: str, step: int) -> float:
        return 1.0 + 0.1 * math.sin(3.0 * step) + (20.0 if step in (60, 120) else 0.0)

    calm = logged(tmp_path / "calm", [full()], lambda _, step: falling(step))
    assert not found(calm, "unstable")
    view = logged(tmp_path / "run", [full()], lambda _, step: falling(step), grad_norm=bursts)
    (symptom,) = found(view, "unstable")
    assert "gradient norm jumped to over 5 times its median at 2 steps" in symptom.seen
    assert symptom.remedy.startswith("--full-lr")
