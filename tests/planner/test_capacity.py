"""Capacity and rank: monotone, sufficient, and not larger than needed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowregret.errors import SpecError
from lowregret.planner.capacity import adapter_params, judge, largest_rank, rl_bits
from lowregret.planner.rank import suggest_rank
from lowregret.planner.recommend import assumed_shape, recommend, stated_facts, validate_capacity
from lowregret.planner.targets import select
from lowregret.specs import DataFacts, MatrixShape

RANKS = st.integers(1, 512)
TOKENS = st.integers(0, 10**10)
LAYERS = st.integers(1, 64)
SHAPE = assumed_shape(1024, 12)
MATRICES = select(SHAPE, ("all",), unembed=False)


@given(rank=st.integers(1, 511), tokens=TOKENS, layers=LAYERS)
def test_parameters_bits_and_verdicts_are_monotone(rank: int, tokens: int, layers: int) -> None:
    small, large = (select(assumed_shape(512, n), ("all",), unembed=False) for n in (layers, layers + 1))
    assert adapter_params(small, rank) < adapter_params(small, rank + 1)
    assert adapter_params(small, rank) < adapter_params(large, rank)
    order = ["UNDERCAPACITY", "TIGHT", "OK"]
    here, higher = judge(small, rank=rank, tokens=tokens), judge(small, rank=rank + 1, tokens=tokens)
    fuller = judge(small, rank=rank, tokens=tokens + 1)
    assert here.bits < higher.bits
    assert here.data_bits < fuller.data_bits
    assert order.index(fuller.status) <= order.index(here.status) <= order.index(higher.status)


@given(tokens=st.integers(1, 10**9))
def test_the_suggested_rank_suffices_and_half_of_it_does_not(tokens: int) -> None:
    facts = DataFacts(num_examples=1, num_tokens=tokens, num_completion_tokens=tokens, longest=1)
    suggestion = suggest_rank(SHAPE, facts)
    assert suggestion.rank.bit_count() == 1
    sufficient = judge(MATRICES, rank=suggestion.rank, tokens=tokens).status != "UNDERCAPACITY"
    if suggestion.capped_by == "nothing":
        assert sufficient
    else:
        assert not sufficient
        assert suggestion.rank * 2 > largest_rank(MATRICES)
    if suggestion.rank > 1:
        assert judge(MATRICES, rank=suggestion.rank // 2, tokens=tokens).status == "UNDERCAPACITY"


@given(tokens=TOKENS)
def test_the_smallest_ranks_are_the_smallest(tokens: int) -> None:
    verdict = judge(MATRICES, rank=1, tokens=tokens)
    for rank, enough in ((verdict.smallest_rank, tokens / 2), (verdict.strict_rank, tokens)):
        if rank is None:
            assert adapter_params(MATRICES, largest_rank(MATRICES)) < enough
        else:
            assert adapter_params(MATRICES, rank) >= enough
            assert rank == 1 or adapter_params(MATRICES, rank - 1) < enough


def test_memory_and_limits_cap_the_rank_and_say_so() -> None:
    facts = stated_facts(10**8)
    assert suggest_rank(SHAPE, facts).rank == 256
    capped = suggest_rank(SHAPE, facts, memory_rank=100)
    assert (capped.rank, capped.capped_by) == (64, "memory")
    assert "memory allows 100" in capped.reason
    assert suggest_rank(SHAPE, facts, task="rl").rank == 32
    assert suggest_rank(SHAPE, stated_facts(10)).rank == 1


def test_experts_allow_their_share_of_the_rank() -> None:
    expert = MatrixShape(
        name="down_proj", kind="expert", d_in=16, d_out=64, path="e", layers=(0,), experts=8, active_experts=4
    )
    assert largest_rank([expert]) == 64
    assert [expert.rank_at(rank) for rank in (1, 4, 8, 9)] == [1, 1, 2, 2]
    assert expert.adapter_params(8) == 2 * (16 + 64) * 8


def test_both_rules_stand_side_by_side() -> None:
    params = adapter_params(MATRICES, 8)
    assert judge(MATRICES, rank=8, tokens=params).status == "OK"
    assert judge(MATRICES, rank=8, tokens=params + 1).status == "TIGHT"
    assert judge(MATRICES, rank=8, tokens=2 * params).status == "TIGHT"
    assert judge(MATRICES, rank=8, tokens=2 * params + 1).status == "UNDERCAPACITY"


def test_rl_carries_one_bit_a_sample_or_the_entropy_of_the_pass_rate() -> None:
    assert rl_bits(10_000 * 32) == 320_000
    assert rl_bits(100, reward_bins=4) == 200
    assert rl_bits(200, pass_rates=[0.5, 0.0]) == 100
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert rl_bits(8, pass_rates=[0.25]) == pytest.approx(8 * quarter)


def test_the_library_s_verdict_reads_as_attributes_and_as_a_mapping() -> None:
    result = validate_capacity(rank=64, hidden_dim=4096, num_layers=32, dataset_tokens=50_000_000)
    assert result["status"] == result.status == "OK"
    assert dict(result)["suggested_rank"] == 16
    assert result.approximate
    assert "approximate" in result.message
    # 3.5x and 1/4 are the proportions of Llama-3.1-8B.
    assert result.adapter_params == 64 * (1_769_472 + 851_968)
    exact = validate_capacity(rank=64, shape=SHAPE, dataset_tokens=10**10)
    assert exact.status == "UNDERCAPACITY"
    with pytest.raises(KeyError):
        result["rank_of_honour"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 8, "dataset_tokens": 10}, "give a shape"),
        ({"rank": 0, "dataset_tokens": 10, "hidden_dim": 64, "num_layers": 2}, "rank: 0 must lie in 1..512"),
        ({"rank": 20, "dataset_tokens": 10, "hidden_dim": 64, "num_layers": 2}, "give at most 16"),
        ({"rank": 8, "dataset_tokens": -1, "hidden_dim": 64, "num_layers": 2}, "dataset_tokens: -1"),
        ({"rank": 8, "dataset_tokens": 1, "hidden_dim": 0, "num_layers": 2}, "hidden_dim: 0"),
    ],
)
def test_bad_questions(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        validate_capacity(**arguments)


def test_a_recommendation_is_a_whole_plan() -> None:
    plan = recommend(model="m", tokens=5_000_000, shape=SHAPE)
    assert plan.steps == math.ceil(round(5_000_000 / 256) / 8)
    assert [slot.name for slot in plan.spec.slots] == [f"r{suggest_rank(SHAPE, plan.facts).rank}"]
    assert plan.spec.slots[0].optim.lr is not None
    assert plan.facts.approximate
    assert any("approximate" in warning or "given or assumed" in warning for warning in plan.warnings)
    with pytest.raises(SpecError, match="tokens: 0"):
        recommend(model="m", tokens=0, shape=SHAPE)
