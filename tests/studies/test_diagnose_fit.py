"""Rules about capacity, overfitting, steps and what was left out: a run that shows each, and one that does not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lowregret.specs import DataFacts, DataSpec
from lowregret.store import RunDirectory
from lowregret.studies.diagnose import view_of
from studies.runs import FACTS, falling, found, full, logged, lora, trained, write_rows

MANY_BITS = DataFacts(num_examples=100_000, num_tokens=2 * 10**9, num_completion_tokens=10**9, longest=100)


def leaving(slot: str, step: int) -> float:
    """Rank 1 leaves the common curve at step 16."""
    return falling(step) + (0.02 * max(0.0, math.log2(max(1, step) / 16)) if slot == "r1" else 0.0)


def test_a_rank_that_leaves_the_curve_of_the_largest(tmp_path: Path):
    slots = [lora("r1", 1), lora("r8", 8), lora("r64", 64)]
    (symptom,) = found(logged(tmp_path / "run", slots, leaving), "capacity-exhausted")
    assert (symptom.where, symptom.severity, symptom.remedy) == ("r1", "warning", "--rank 64")
    assert "0.080 nats behind rank 64 at step 256" in symptom.seen


def test_the_planner_s_verdict_makes_it_serious(tmp_path: Path):
    view = logged(tmp_path / "run", [lora("r1", 1), lora("r64", 64)], leaving, facts=MANY_BITS, batch_size=60)
    symptoms = found(view, "capacity-exhausted")
    assert [(s.where, s.severity) for s in symptoms] == [("r1", "serious")]
    assert "UNDERCAPACITY" in symptoms[0].seen


def test_one_rank_that_can_not_hold_the_data_and_rests(tmp_path: Path):
    def resting(slot: str, step: int) -> float:
        return 2.0 - 0.3 * min(1.0, math.log1p(step) / math.log1p(64))

    full_up = logged(tmp_path / "run", [lora("r1", 1)], resting, facts=MANY_BITS, batch_size=60)
    (symptom,) = found(full_up, "capacity-exhausted")
    assert "only 0% of its drop came in the last half" in symptom.seen
    assert not found(logged(tmp_path / "holds", [lora("r64", 64)], resting), "capacity-exhausted")


def test_ranks_at_a_constant_distance_are_not_full(tmp_path: Path):
    slots = [lora("r1", 1), lora("r64", 64)]
    offset = logged(tmp_path / "run", slots, lambda s, k: falling(k) + (0.02 if s == "r1" and k else 0.0))
    assert not found(offset, "capacity-exhausted")


def test_a_rank_that_a_smaller_one_beats_is_not_full(tmp_path: Path):
    slots = [lora("r0", 1), lora("r1", 4), lora("r64", 64)]
    assert not found(logged(tmp_path / "run", slots, leaving), "capacity-exhausted")


def test_examples_learned_by_heart(model: Path, tmp_path: Path):
    rows = [(f"What is {k * 7919 % 101}?", str(k * 104_729 % 997)) for k in range(24)]
    data = DataSpec(source=str(write_rows(tmp_path / "few.jsonl", rows)), validation_size=8, test_size=8)
    view = trained(tmp_path / "run", model=model, data=data, slots=[full(lr=3e-3)], steps=120)
    # All weights learn two dozen sums by heart within a hundred steps; a small adapter of a random base does not.
    (symptom,) = found(view, "overfitted")
    assert symptom.severity == "serious"
    assert "passes over the data" in symptom.seen
    lowest = int(symptom.remedy.split()[1].rstrip(","))
    assert 0 < lowest < 120
    once = trained(tmp_path / "once", model=model, data=data, slots=[full(lr=3e-3)], steps=2)
    assert not found(once, "overfitted")


def test_several_passes_that_still_help_are_not_overfitting(tmp_path: Path):
    few = replace(FACTS, num_examples=100)
    assert not found(logged(tmp_path / "run", [lora("r8")], lambda _, k: falling(k), facts=few), "overfitted")


def test_few_steps_and_large_batches_by_the_planner_s_thresholds(tmp_path: Path):
    short = logged(tmp_path / "short", [lora("r8")], lambda _, k: falling(k), steps=20, batch_size=128)
    (few,), (large,) = found(short, "few-steps"), found(short, "large-batch")
    assert few.remedy == "--batch-size 51, or more --epochs"
    assert "r8 still fell at the end" in few.seen
    assert large.remedy.startswith("--batch-size 32")
    usual = logged(tmp_path / "usual", [lora("r8")], lambda _, k: falling(k), steps=256)
    assert not found(usual, "few-steps")
    assert not found(usual, "large-batch")


def test_a_run_that_was_stopped(tmp_path: Path):
    whole = logged(tmp_path / "run", [lora("r8")], lambda _, k: falling(k))
    assert not found(whole, "unfinished")
    with RunDirectory.open(tmp_path / "run") as run:
        run.truncate_logs(100)
        (symptom,) = found(view_of(run), "unfinished")
    assert symptom.seen == "its logs end at step 100 of 256"


@pytest.mark.parametrize(("targets", "expected"), [(("attention",), 1), (("q_proj", "v_proj"), 1), (("all",), 0)])
def test_adapters_on_attention_only(tmp_path: Path, targets: tuple[str, ...], expected: int):
    view = logged(tmp_path / "run", [lora("r8", targets=targets)], lambda _, k: falling(k), steps=8)
    assert len(found(view, "attention-only")) == expected


def test_alpha_in_proportion_to_rank(tmp_path: Path):
    tied = [lora("r8", 8, alpha=16.0), lora("r64", 64, alpha=128.0)]
    (symptom,) = found(logged(tmp_path / "tied", tied, lambda _, k: falling(k), steps=8), "alpha-tied-to-rank")
    assert "16 at rank 8, 128 at rank 64" in symptom.seen
    free = [lora("r8", 8), lora("r64", 64)]
    assert not found(logged(tmp_path / "free", free, lambda _, k: falling(k), steps=8), "alpha-tied-to-rank")


def test_the_unembedding_helped_beside(model: Path, sums: DataSpec, tmp_path: Path):
    slots = [lora("plain", 4, 3e-3), lora("head", 4, 3e-3, unembed=True)]
    (symptom,) = found(trained(tmp_path / "run", model=model, data=sums, slots=slots), "unembedding-left-out")
    assert (symptom.where, symptom.remedy) == ("plain", "--unembed")
    assert "head, which adapts the unembedding too" in symptom.seen
    alone = trained(tmp_path / "alone", model=model, data=sums, slots=slots[:1])
    assert not found(alone, "unembedding-left-out")


def test_a_base_to_which_the_vocabulary_is_next_to_impossible(model: Path, sums: DataSpec, tmp_path: Path):
    shifted = tmp_path / "shifted"
    shifted.mkdir()
    for file in model.iterdir():
        (shifted / file.name).write_bytes(file.read_bytes())
    tensors = load_file(shifted / "model.safetensors")
    tensors["lm_head.weight"] *= 100.0  # sure of itself, and wrong about every token
    save_file(tensors, shifted / "model.safetensors", metadata={"format": "pt"})
    view = trained(tmp_path / "run", model=shifted, data=sums, slots=[lora("r4", 4, 3e-3)])
    (symptom,) = found(view, "unembedding-left-out")
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    assert f"more than the {math.log(vocabulary):.2f} of an even guess" in symptom.seen
