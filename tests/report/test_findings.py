"""The verdict says what the logs hold, chooses on validation, and claims no more than the margin allows."""

from __future__ import annotations

import pytest

from lowregret.report.findings import SlotFinding, judge, slot_findings
from lowregret.store import EvalRow, RunDirectory


def finding(slot: str, after: float | None, validation: float | None, *, diverged: bool = False) -> SlotFinding:
    return SlotFinding(
        slot=slot,
        rank=8,
        lr=1e-4,
        num_parameters=1,
        before=2.0,
        after=after,
        validation=validation,
        diverged=diverged,
    )


def test_the_best_is_chosen_on_validation_and_reported_on_test() -> None:
    verdict = judge([finding("lucky", 1.40, 1.70), finding("sound", 1.50, 1.60)])
    assert (verdict.best, verdict.improved) == ("sound", True)
    assert "from 2.000 to 1.500" in verdict.text
    assert "0.500 less, 25%" in verdict.text
    assert "best of 2 slots on the validation split" in verdict.text
    assert "within" not in verdict.text


def test_without_a_validation_split_the_test_split_decides_and_is_named() -> None:
    assert "on the test split" in judge([finding("a", 1.4, None), finding("b", 1.5, None)]).text


@pytest.mark.parametrize(
    ("after", "fell", "says"),
    [
        (1.9949, True, "fell from"),
        (1.9951, False, "did not move by more than 0.005"),
        (2.0049, False, "did not move by more than 0.005"),
        (2.0051, False, "rose from"),
    ],
)
def test_changes_inside_the_margin_are_no_change(after: float, fell: bool, says: str) -> None:
    verdict = judge([finding("r8", after, after)])
    assert verdict.improved is fell
    assert says in verdict.text


def test_slots_inside_the_margin_are_not_told_apart() -> None:
    text = judge([finding("a", 1.5, 1.5), finding("b", 1.5, 1.5049), finding("c", 1.5, 1.5051)]).text
    assert "b is within 0.005 nats of it" in text
    text = judge([finding("a", 1.5, 1.5), finding("b", 1.5, 1.501), finding("c", 1.5, 1.502)]).text
    assert "b and c are within" in text


def test_a_diverged_slot_is_named_and_never_best() -> None:
    verdict = judge([finding("wild", None, None, diverged=True), finding("calm", 1.9, 1.9)])
    assert verdict.best == "calm"
    assert verdict.text.endswith("wild diverged.")
    nothing = judge([finding("wild", None, None, diverged=True)])
    assert (nothing.best, nothing.improved) == (None, False)


def test_findings_come_from_the_run_directory(make_run) -> None:
    found = {f.slot: f for f in slot_findings(make_run(diverged="r64"))}
    assert list(found) == ["r1", "r8", "r64", "full"]
    last = {row.slot: row.nll for row in make_run(name="same").read_evals() if (row.split, row.step) == ("test", 120)}
    assert found["r8"].after == last["r8"]
    assert found["r8"].before == 1.464
    assert found["r8"].bits == pytest.approx(last["r8"] / 0.6931471805599453)
    assert (found["r8"].num_parameters, found["full"].num_parameters) == (8 * 576, None)
    assert found["r64"].diverged
    assert found["r64"].after is None
    assert not found["r8"].diverged
    assert found["full"].method == "full fine-tuning"


def test_a_slot_that_a_better_rate_ended_did_not_diverge(make_run) -> None:
    run: RunDirectory = make_run(diverged="r64", stopped="r1")
    found = {f.slot: f for f in slot_findings(run)}
    assert [f.ended for f in found.values()] == ["stopped early", None, "diverged", None]
    assert (found["r1"].diverged, found["r1"].after, found["r1"].validation) == (False, None, None)
    assert judge(slot_findings(run)).text.endswith(" r64 diverged. r1 was stopped early.")
    assert "diverged" not in judge(slot_findings(make_run(stopped="r1", name="alone"))).text


def test_an_evaluation_cut_by_a_kill_is_not_compared(make_run) -> None:
    run: RunDirectory = make_run(finished=False)
    whole = slot_findings(run)
    with RunDirectory.open(run.path) as again:
        again.append_evals([EvalRow(step=61, slot="r1", split="test", nll=0.001, tokens=10)])
    assert slot_findings(run) == whole


def test_before_any_training_there_is_no_verdict(make_run) -> None:
    with RunDirectory.open(make_run().path) as run:
        run.truncate_logs(0)
    verdict = judge(slot_findings(run))
    assert (verdict.best, verdict.improved) == (None, False)
    assert "yet" in verdict.text
