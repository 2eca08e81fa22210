"""A spec survives the way through TOML, and a wrong TOML is refused by name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowregret.errors import SpecError
from lowregret.specs import (
    AdapterSpec,
    DataFacts,
    DataSpec,
    Derived,
    FullSpec,
    ModelSpec,
    OptimSpec,
    ResolvedPlan,
    RunSpec,
    SlotSpec,
    TrainSpec,
)
from lowregret.specs.codec import from_dict, from_toml, read_toml, to_dict, to_toml
from lowregret.specs.toml_text import dumps

RUN = RunSpec(
    model=ModelSpec(source="smollm2-135m"),
    data=DataSpec(source="data.jsonl", columns=(("question", "problem"), ("answer", "solution"))),
    slots=(
        SlotSpec(name="r8", weights=AdapterSpec(rank=8, targets=("q_proj", "mlp")), optim=OptimSpec(lr=2e-4)),
        SlotSpec(name="full", weights=FullSpec(support="matched"), optim=OptimSpec(lr=1e-5, clip_norm=1.0)),
    ),
    train=TrainSpec(steps=30, also_eval=("facts",)),
)
PLAN = ResolvedPlan(
    spec=RUN,
    facts=DataFacts(num_examples=10, num_tokens=100, num_completion_tokens=40, longest=17),
    steps=30,
    tokens_per_microbatch=2048,
    device="cpu",
    dtype="fp32",
    threads=2,
    derived=(
        Derived(name="steps", value=30, reason='given as "30"', source="user"),
        Derived(name="slots.r8.optim.lr", value=3.0, reason="law\nof width", source="science 2"),
        Derived(name="packed", value=True, reason="\x7f control \\ é", source="house"),
        Derived(name="dtype", value="fp32", reason="", source="measured"),
    ),
    warnings=("small data",),
    memory_bytes={"base weights": 538_000_000, "r8.adapter": 10},
)

floats = st.floats(allow_nan=False)
slots = st.builds(
    SlotSpec,
    name=st.text(),
    weights=st.builds(AdapterSpec, rank=st.integers(), alpha=floats, targets=st.lists(st.text()).map(tuple))
    | st.builds(FullSpec, support=st.sampled_from(["all", "matched"]), rounding_seed=st.integers()),
    optim=st.builds(OptimSpec, lr=st.none() | floats, betas=st.tuples(floats, floats), eps=floats),
)
plans = st.builds(
    replace,
    st.just(PLAN),
    spec=st.builds(replace, st.just(RUN), slots=st.lists(slots, max_size=3).map(tuple)),
    derived=st.lists(
        st.builds(
            Derived,
            name=st.text(),
            value=floats | st.integers() | st.booleans() | st.text(),
            reason=st.text(),
            source=st.just("x"),
        ),
        max_size=3,
    ).map(tuple),
    warnings=st.lists(st.text()).map(tuple),
    memory_bytes=st.dictionaries(st.text(), st.integers()),
)


@settings(max_examples=60, deadline=None)
@given(plans)
def test_any_plan_reads_back_equal_to_the_last_bit(plan: ResolvedPlan) -> None:
    back = from_toml(ResolvedPlan, to_toml(plan))
    assert back == plan
    # repr tells 1 from 1.0 and True, and -0.0 from 0.0, where == does not.
    assert repr(back) == repr(plan)


@settings(deadline=None)
@given(st.text(), st.floats(allow_nan=False))
def test_writer_agrees_with_the_standard_reader(text: str, number: float) -> None:
    table = {
        text: text,
        "n": number,
        "nested": {text: [text, "x"]},
        "inline": [[{text: text}]],
        "none": [],
        "empty": {},
    }
    assert tomllib.loads(dumps(table)) == table


def test_defaults_are_written_and_none_is_absent() -> None:
    written = tomllib.loads(to_toml(RUN))
    assert written["train"]["eval_every"] == 100
    assert written["slots"][0]["weights"]["kind"] == "adapter"
    assert written["slots"][1]["weights"]["kind"] == "full"
    assert written["slots"][0]["optim"]["eps"] == 1e-12
    assert "lr_b" not in written["slots"][0]["optim"]
    assert "threads" not in written["hardware"]


def test_dict_is_the_inverse_too_and_an_integer_serves_as_float() -> None:
    assert from_dict(RunSpec, to_dict(RUN)) == RUN
    alpha = from_toml(AdapterSpec, "rank = 8\nalpha = 16").alpha
    assert alpha == 16.0
    assert isinstance(alpha, float)
    assert to_toml(AdapterSpec(rank=8, alpha=16)) == to_toml(AdapterSpec(rank=8, alpha=16.0))


def edited(path: list[str | int], value: object) -> Mapping[str, object]:
    data = to_dict(RUN)
    node: object = data
    for key in path[:-1]:
        node = node[key]  # type: ignore[index]
    if value is None:
        del node[path[-1]]  # type: ignore[attr-defined]
    else:
        node[path[-1]] = value  # type: ignore[index]
    return data


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["train", "epoch"], 1, ["train.epoch: unknown key", "`epochs`"]),
        (["slots", 1, "optim", "learning_rate"], 1e-4, ["slots[1].optim.learning_rate: unknown key"]),
        (["slots", 0, "weights", "ranks"], 4, ["slots[0].weights.ranks: unknown key", "`rank`"]),
        (["slots", 0, "weights", "support"], "all", ["slots[0].weights.support: unknown key"]),
        (["modle"], {"source": "x"}, ["modle: unknown key", "`model`"]),
        (["train", "steps"], "ten", ["train.steps: is 'ten'", "an integer"]),
        (["train", "steps"], True, ["train.steps: is true", "an integer"]),
        (["train", "steps"], 1.5, ["train.steps: is 1.5"]),
        (["train", "epochs"], "1", ["train.epochs: is '1'", "a number"]),
        (["train", "epochs"], 10**400, ["train.epochs: is an integer beyond"]),
        (["train", "also_eval"], "facts", ["train.also_eval: is 'facts'", "a list"]),
        (["train", "also_eval"], ["facts", 3], ["train.also_eval[1]: is 3", "a string"]),
        (["train"], 3, ["train: is 3", "table"]),
        (["data", "overlong"], "cut", ["data.overlong: is 'cut'", "'drop' or 'truncate'"]),
        (["data", "columns"], [["question"]], ["data.columns[0]: has 1 items, should have 2"]),
        (["slots", 0, "optim", "betas"], [0.9], ["slots[0].optim.betas: has 1 items, should have 2"]),
        (["slots", 0, "weights", "kind"], "lora", ["slots[0].weights.kind: is 'lora'", '"adapter" or "full"']),
        (["slots", 0, "weights", "kind"], None, ["slots[0].weights.kind: is missing"]),
        (["slots", 0, "weights"], "r8", ["slots[0].weights: is 'r8'", '"adapter" or "full"']),
        (["slots", 0, "weights", "rank"], None, ["slots[0].weights.rank: is missing"]),
        (["model"], None, ["model: is missing"]),
        (["slots"], {"name": "r8"}, ["slots: is a table", "a list"]),
    ],
)
def test_a_mistake_is_named_by_its_dotted_key(path: list[str | int], value: object, says: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        from_dict(RunSpec, edited(path, value))
    for part in says:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_value_is_refused_on_the_way_out_too() -> None:
    with pytest.raises(SpecError, match=r"rank: is 8\.5, should be an integer"):
        to_toml(AdapterSpec(rank=8.5))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"weights: is .* should be a table"):
        to_toml(SlotSpec(name="r8", weights=OptimSpec(), optim=OptimSpec()))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="Unicode"):
        to_toml(ModelSpec(source="\ud800"))


def test_none_that_absence_could_not_mean_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd:
        limit: int | None = 3

    globals()["Odd"] = Odd
    try:
        with pytest.raises(SpecError, match="limit: None can't be written"):
            to_toml(Odd(limit=None))
    finally:
        del globals()["Odd"]


def test_files_are_named_in_errors(tmp_path) -> None:
    path = tmp_path / "run.toml"
    with pytest.raises(SpecError, match=r"run\.toml: can't be read"):
        read_toml(RunSpec, path)
    path.write_text(to_toml(RUN), encoding="utf-8")
    assert read_toml(RunSpec, path) == RUN
    path.write_text("[model\n")
    with pytest.raises(SpecError, match=r"run\.toml: not valid TOML.*line 1"):
        read_toml(RunSpec, path)
    path.write_bytes(b"\xff")
    with pytest.raises(SpecError, match="UTF-8"):
        read_toml(RunSpec, path)
    path.write_text("task = 3")
    with pytest.raises(SpecError, match=r"run\.toml: task: is 3"):
        read_toml(RunSpec, path)
