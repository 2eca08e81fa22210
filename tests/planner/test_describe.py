"""The plan for readers: the keys of `--json`, consistent with what they are made of, and the tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lowregret.planner.describe import plan_mapping, plan_tables
from lowregret.planner.recommend import STATED_MACHINE, recommend, stated_facts
from lowregret.planner.resolve import resolve
from lowregret.planner.shapes import read_shape
from lowregret.specs import (
    AdapterSpec,
    DataSpec,
    FullSpec,
    HardwareSpec,
    ModelShape,
    ModelSpec,
    OptimSpec,
    ResolvedPlan,
    RunSpec,
    SlotSpec,
)
from planner.model_configs import PUBLISHED

KEYS = {
    "model", "family", "adapter_params", "adapter_params_by_kind", "capacity_bits", "data_tokens", "data_bits",
    "capacity_status", "suggested_rank", "learning_rate", "learning_rate_interval", "full_learning_rate",
    "flops_per_token_lora", "flops_per_token_full", "break_even_rank", "memory_bytes", "adapter_bytes", "warnings",
}  # fmt: skip


def llama(folder: Path) -> ModelShape:
    (folder / "config.json").write_text(json.dumps(PUBLISHED["Llama-3.1-8B"]))
    return read_shape(folder)


def a_plan(shape: ModelShape, **fields: object) -> ResolvedPlan:
    slots = (
        SlotSpec(name="r64", weights=AdapterSpec(rank=64), optim=OptimSpec()),
        SlotSpec(name="r1", weights=AdapterSpec(rank=1), optim=OptimSpec()),
    )
    spec = RunSpec(model=ModelSpec(source="m"), data=DataSpec(source="d"), slots=slots)
    spec = replace(spec, **fields)  # pyright: ignore[reportArgumentType]
    return resolve(spec, shape=shape, facts=stated_facts(10_000_000), hardware=STATED_MACHINE)


def test_the_mapping_has_what_scripts_rely_on(tmp_path: Path) -> None:
    shape = llama(tmp_path)
    mapping = json.loads(json.dumps(plan_mapping(a_plan(shape), shape)))
    assert set(mapping) >= KEYS
    assert mapping["family"] == "llama"
    assert mapping["adapter_params_by_kind"] == {"attention": 64 * 851_968, "mlp": 64 * 1_769_472}
    assert mapping["adapter_params"] == sum(mapping["adapter_params_by_kind"].values()) == 167_772_160
    assert mapping["capacity_bits"] == 2 * mapping["adapter_params"]
    assert mapping["data_tokens"] == mapping["data_bits"] == 10_000_000
    assert (mapping["capacity_status"], mapping["suggested_rank"]) == ("OK", 2)
    assert mapping["adapter_bytes"] == 4 * mapping["adapter_params"]
    low, high = mapping["learning_rate_interval"]
    assert low < mapping["learning_rate"] < high
    assert mapping["full_learning_rate"] < mapping["learning_rate"]
    assert mapping["flops_per_token_lora"] < mapping["flops_per_token_full"]
    assert mapping["break_even_rank"] > 64
    assert [slot["capacity_status"] for slot in mapping["slots"]] == ["OK", "UNDERCAPACITY"]
    assert mapping["memory_bytes"]["total"] > 2 * shape.num_params


def test_full_fine_tuning_alone_has_a_mapping_and_tables(tmp_path: Path) -> None:
    shape = llama(tmp_path)
    slot = SlotSpec(name="full", weights=FullSpec(), optim=OptimSpec())
    spec = RunSpec(model=ModelSpec(source="m"), data=DataSpec(source="d"), slots=(slot,))
    machine = replace(STATED_MACHINE, memory_bytes=400 << 30)
    plan = resolve(spec, shape=shape, facts=stated_facts(10**6), hardware=machine)
    mapping = plan_mapping(plan, shape, memory_bytes=400 << 30)
    slots = mapping["slots"]
    assert isinstance(slots, list)
    assert slots[0]["params"] == shape.num_params
    assert mapping["largest_rank_that_fits"] == 0
    assert [table.title for table in plan_tables(plan, shape)]


def test_what_fits_grows_with_memory_and_time_comes_from_speed(tmp_path: Path) -> None:
    shape = llama(tmp_path)
    plan = a_plan(shape)
    small, large = (plan_mapping(plan, shape, memory_bytes=size << 30) for size in (80, 160))
    for key in ("largest_rank_that_fits", "largest_microbatch_that_fits"):
        assert 0 < int(str(small[key])) <= int(str(large[key]))
    assert small["seconds"] is None
    timed = plan_mapping(plan, shape, macs_per_second=1e14)
    assert timed["seconds"] == pytest.approx(float(str(timed["flops_of_run"])) / 1e14)
    formats = large["memory_bytes_by_format"]
    assert isinstance(formats, dict)
    assert formats["4-bit base, checkpointing"] < formats["bf16, checkpointing"] < formats["bf16"] < formats["fp32"]


def test_tables_are_full_rectangles_of_text(tmp_path: Path) -> None:
    shape = llama(tmp_path)
    tables = plan_tables(a_plan(shape), shape)
    assert [table.title for table in tables] == [
        "What trains", "Capacity", "Cost", "Peak memory, upper bound", "What would fit", "Why",
    ]  # fmt: skip
    for table in tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_the_expert_convention_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["Qwen3-30B-A3B"]))
    shape = read_shape(tmp_path)
    plan = recommend(model=tmp_path, tokens=10**6, rank=16, hardware=replace(STATED_MACHINE, memory_bytes=1 << 40))
    assert "16 / 8 active = 2" in str(plan_mapping(plan, shape)["expert_convention"])


def test_one_pass_gains_where_steps_are_short(tmp_path: Path) -> None:
    shape = llama(tmp_path)
    cpu = replace(STATED_MACHINE, kind="cpu")
    spec = replace(a_plan(shape).spec, hardware=HardwareSpec())
    gains: list[float] = []
    for batch_size in (1, 256):
        train = replace(spec.train, batch_size=batch_size)
        plan = resolve(replace(spec, train=train), shape=shape, facts=stated_facts(10_000_000), hardware=cpu)
        gains.append(float(plan_mapping(plan, shape)["one_pass_gain"]))
        (costs,) = [table for table in plan_tables(plan, shape) if table.title == "Cost"]
        assert costs.rows[-1][0] == "all adapters in one pass"
    assert 1.0 < gains[1] < gains[0] < 2.0
    assert plan_mapping(a_plan(shape), shape)["one_pass_gain"] is None  # not measured on a GPU
    alone = replace(spec, slots=spec.slots[:1])
    plan = resolve(alone, shape=shape, facts=stated_facts(10_000_000), hardware=cpu)
    assert plan_mapping(plan, shape)["one_pass_gain"] is None
