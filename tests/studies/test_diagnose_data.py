"""Rules about the data and about rounding: a run that shows each failure, and one that does not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowregret.adapters.peft_format import read_adapter
from lowregret.export.merge import merge
from lowregret.models.load import load_module
from lowregret.models.locate import ModelFolder
from lowregret.specs import DataSpec
from studies.runs import falling, found, full, logged, lora, trained, write_rows

QUESTIONS = [(f"{k} + {k % 7} = ?", str(k + k % 7)) for k in range(120)]


def test_test_prompts_that_are_trained_on(model: Path, tmp_path: Path):
    train = write_rows(tmp_path / "train.jsonl", QUESTIONS)
    leaky = write_rows(tmp_path / "leaky.jsonl", QUESTIONS[:30] + [(f"{k} - 1 = ?", str(k - 1)) for k in range(30)])
    clean = write_rows(tmp_path / "clean.jsonl", [(f"{k} - 1 = ?", str(k - 1)) for k in range(30)])
    settings = DataSpec(source=str(train), validation_size=10)
    shows = replace(settings, test_source=str(leaky))
    (symptom,) = found(
        trained(tmp_path / "run", model=model, data=shows, slots=[lora("r4", 4)], steps=1), "leaked-test-rows"
    )
    assert "30 test rows (50.0%)" in symptom.seen
    assert symptom.severity == "warning"
    apart = replace(settings, test_source=str(clean))
    assert not found(
        trained(tmp_path / "clean", model=model, data=apart, slots=[lora("r4", 4)], steps=1), "leaked-test-rows"
    )


def test_a_split_that_falls_much_further_than_the_other(tmp_path: Path):
    copies = logged(tmp_path / "run", [lora("r8")], lambda _, k: falling(k), test=lambda _, k: falling(k, by=0.1))
    (symptom,) = found(copies, "splits-disagree")
    assert "fell by 0.500 nats on validation and by 0.100 on test" in symptom.seen
    alike = logged(tmp_path / "alike", [lora("r8")], lambda _, k: falling(k), test=lambda _, k: falling(k, by=0.45))
    assert not found(alike, "splits-disagree")


def test_rows_that_are_left_out(model: Path, tmp_path: Path):
    rows = QUESTIONS[:80] + [(f"{k}" * 30, "1") for k in range(10, 60)] + [(f"{k}?", "") for k in range(10)]
    data = DataSpec(source=str(write_rows(tmp_path / "rows.jsonl", rows)), validation_size=10, test_size=10)
    short = replace(data, max_length=40)
    symptoms = found(trained(tmp_path / "run", model=model, data=short, slots=[lora("r4", 4)], steps=1), "rows-dropped")
    assert [(s.severity, s.seen) for s in symptoms] == [
        ("serious", "50 of 140 rows (36%) were longer than --max-length and were dropped"),
        ("warning", "10 of 140 rows (7%) had no answer and were dropped"),
    ]
    assert symptoms[0].remedy == "--max-length above 40"
    cut = trained(
        tmp_path / "cut", model=model, data=replace(short, overlong="truncate"), slots=[lora("r4", 4)], steps=1
    )
    assert "50 of 140 rows (36%) had no token that carries loss" in found(cut, "rows-dropped")[0].seen
    whole = DataSpec(source=str(write_rows(tmp_path / "whole.jsonl", QUESTIONS)), validation_size=10, test_size=10)
    assert not found(trained(tmp_path / "all", model=model, data=whole, slots=[lora("r4", 4)], steps=1), "rows-dropped")


def test_completions_that_are_masked_away(model: Path, sums: DataSpec, tmp_path: Path):
    rows = [(f"{k} " + "and so on " * 30, "1") for k in range(40)]
    data = DataSpec(source=str(write_rows(tmp_path / "long.jsonl", rows)), validation_size=4, test_size=4)
    view = trained(tmp_path / "run", model=model, data=data, slots=[lora("r4", 4)], steps=1)
    (symptom,) = found(view, "completions-masked")
    assert "0.6" in symptom.seen and "of the training tokens carry loss, 8 tokens a step" in symptom.seen
    usual = trained(tmp_path / "usual", model=model, data=sums, slots=[lora("r4", 4)], steps=1)
    assert not found(usual, "completions-masked")


def test_a_lead_within_the_noise_of_the_splits(tmp_path: Path):
    slots = [lora("a"), lora("b", 4), lora("c", 2)]
    validation = {"a": 0.50, "b": 0.48, "c": 0.46}
    test = {"a": 0.48, "b": 0.50, "c": 0.49}

    def run(name: str, of_test: dict[str, float]):
        return logged(
            tmp_path / name,
            slots,
            lambda slot, step: falling(step, by=validation[slot]),
            test=lambda slot, step: falling(step, by=of_test[slot]),
        )

    (symptom,) = found(run("noisy", test), "test-too-small")
    assert symptom.where == "a, b"
    assert "-0.020 nats apart, validation +0.020" in symptom.seen
    assert not found(run("resolved", validation), "test-too-small")


def test_full_fine_tuning_rounded_to_nearest(model: Path, sums: DataSpec, tmp_path: Path):
    slots = [full("nearest", 1e-6, rounding="nearest"), full("stochastic", 1e-6)]
    view = trained(tmp_path / "run", model=model, data=sums, slots=slots, steps=4, dtype="bf16")
    (symptom,) = found(view, "update-swallowed")
    assert (symptom.where, symptom.severity) == ("nearest", "serious")
    drops = {s.name: abs(view.held_out(s.name)[0][1] - view.held_out(s.name)[-1][1]) for s in slots}
    assert drops["nearest"] < drops["stochastic"] / 2
    exact = trained(tmp_path / "exact", model=model, data=sums, slots=slots[:1], steps=1)
    assert not found(exact, "update-swallowed")


def test_an_adapter_added_to_a_base_that_was_rounded(model: Path, sums: DataSpec, tmp_path: Path):
    slots = [lora("usual", 4, 1e-4, arithmetic="add"), lora("ours", 4, 1e-4)]
    view = trained(tmp_path / "run", model=model, data=sums, slots=slots, steps=1, dtype="bf16")
    (symptom,) = found(view, "update-swallowed")
    assert (symptom.where, symptom.severity) == ("usual", "serious")
    assert "(add)" in symptom.seen


@pytest.fixture(scope="module")
def small_and_large(model: Path, sums: DataSpec, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("merges")
    slots = [lora("small", 4, 1e-6), lora("large", 4, 1e-2)]
    return folder / "run", trained(folder / "run", model=model, data=sums, slots=slots, steps=4)


def test_adapters_that_a_merge_to_nearest_loses(small_and_large):
    _, view = small_and_large
    (symptom,) = found(view, "merge-swallows")
    assert (symptom.where, symptom.severity) == ("small", "warning")
    assert "--slot small --merge (stochastic rounding)" in symptom.remedy


def test_the_share_that_survives_is_that_of_a_real_merge(model: Path, small_and_large):
    folder, view = small_and_large
    for slot, share in view.surviving:
        base = load_module(
            ModelFolder(path=model, name="tiny", content_hash=""), dtype=torch.float32, device=torch.device("cpu")
        )
        report = merge(base, read_adapter(folder / "adapters" / slot), dtype=torch.bfloat16, rounding="nearest")
        assert math.isclose(share, report.share_of_update, rel_tol=0.05, abs_tol=0.01), slot
