"""How symptoms become a diagnosis: what could not be checked is said, serious ones come first, equal ones are one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lowregret.store import RunDirectory
from lowregret.studies.diagnose import RULES, diagnose_run, view_of
from lowregret.studies.diagnose.curves import last_doubling, spikes, widening
from studies.runs import falling, logged, lora


def test_rules_have_names_of_their_own():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.looks_for for rule in RULES)


def test_a_good_run_has_no_symptom_and_says_what_was_looked_for(tmp_path: Path):
    view = logged(tmp_path / "run", [lora("r8", 8, 3e-4), lora("r64", 64, 3e-4)], lambda _, k: falling(k))
    diagnosis = diagnose_run(view)
    assert diagnosis.symptoms == ()
    assert not diagnosis.serious
    assert {name for name, _ in diagnosis.unchecked} == {"merge-swallows", "leaked-test-rows", "rows-dropped"}
    assert len(diagnosis.checked) + len(diagnosis.unchecked) == len(RULES)


def test_without_the_base_its_rules_are_not_checked(tmp_path: Path):
    view = replace(logged(tmp_path / "run", [lora("r8", 8, 1e-7)], lambda _, k: 2.0 - k / 9999), shape=None)
    assert dict(diagnose_run(view).unchecked)["lr-at-full-scale"] == "the base model is not at hand"


def test_a_run_that_has_logged_nothing_can_be_read(tmp_path: Path):
    full_view = logged(tmp_path / "run", [lora("r8")], lambda _, k: falling(k), steps=8)
    with RunDirectory.open(tmp_path / "run") as run:
        run.truncate_logs(-1)
        view = view_of(run, shape=full_view.shape)
    diagnosis = diagnose_run(view)
    assert dict(diagnosis.unchecked)["overfitted"] == "no held-out loss after training"
    assert {symptom.rule for symptom in diagnosis.symptoms} == {"few-steps", "unfinished"}


def test_serious_ones_come_first_and_equal_ones_are_one_line(tmp_path: Path):
    slots = [lora("a", 8, targets=("attention",)), lora("b", 4, 1e-6, targets=("attention",))]
    view = logged(tmp_path / "run", slots, lambda s, k: falling(k) if s == "a" else 2.0 - k / 9999)
    symptoms = diagnose_run(view).symptoms
    assert symptoms[0].severity == "serious"
    (merged,) = [symptom for symptom in symptoms if symptom.rule == "attention-only"]
    assert merged.where == "a, b"


@pytest.mark.parametrize("steps", [64, 1024])
def test_the_last_doubling_tells_steps_from_their_logarithm(steps: int):
    measured = [0, *(1 << k for k in range(steps.bit_length()))]
    in_log = tuple((k, falling(k, steps=steps)) for k in measured)
    linear = tuple((k, 2.0 - k / steps) for k in measured)
    assert last_doubling(in_log) < 0.18
    assert last_doubling(linear) == pytest.approx(0.5)


def test_noise_is_no_spike_and_a_gap_that_swings_does_not_widen():
    noisy = tuple((k, 1.0 + 0.3 * ((k * 7919) % 13 - 6) / 6) for k in range(200))
    assert spikes(noisy, least=0.25) == ()
    assert widening((16, 32, 64, 128, 256), (0.02, 0.03, 0.0, 0.03, 0.04)) == 0.0
