"""A study may grow: more seeds, rates, questions. Anything else is another study."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lowregret.errors import SpecError
from lowregret.specs import DataSpec, GridSpec, HardwareSpec, ModelSpec, QuestionSpec, StudySpec
from lowregret.studies.extend import refuse_other, with_seeds

RANK = QuestionSpec(protocol="rank", data=DataSpec(source="d"), grid=GridSpec(kind="fixed", rates=(1e-3,)))
SPEC = StudySpec(name="mine", model=ModelSpec(source="m"), questions=(RANK,))
MORE_RATES = replace(RANK, grid=replace(RANK.grid, rates=(1e-4, 1e-3)))


@pytest.mark.parametrize(
    "larger",
    [
        SPEC,
        with_seeds(SPEC, 5),
        replace(SPEC, questions=(MORE_RATES,)),
        replace(SPEC, questions=(RANK, replace(RANK, protocol="early"))),
        replace(SPEC, workers=4),
    ],
)
def test_more_of_the_same_is_the_same_study(larger: StudySpec):
    assert refuse_other(SPEC, larger, where="new.toml") is None


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(SPEC, model=ModelSpec(source="n")), "model"),
        (replace(SPEC, hardware=HardwareSpec(dtype="bf16")), "hardware"),
        (replace(SPEC, questions=()), "questions"),
        (replace(SPEC, questions=(replace(RANK, seeds=(0, 1)),)), r"questions\[0\] \(rank\)"),
        (replace(SPEC, questions=(replace(RANK, data=DataSpec(source="e")),)), r"questions\[0\] \(rank\)"),
    ],
)
def test_something_else_is_refused_by_name(other: StudySpec, named: str):
    with pytest.raises(SpecError, match=f"new.toml: {named}: is not the study's own"):
        refuse_other(SPEC, other, where="new.toml")


def test_seeds_are_never_dropped():
    assert with_seeds(SPEC, 5).questions[0].seeds == (0, 1, 2, 3, 4)
    with pytest.raises(SpecError, match="--seeds: 2 would drop seeds of rank; give 3"):
        with_seeds(SPEC, 2)
