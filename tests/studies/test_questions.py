"""From a question to arms, from arms to cells, from cells to banks."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowregret.errors import SpecError
from lowregret.planner.flops import flops
from lowregret.planner.shapes import read_shape
from lowregret.planner.targets import select
from lowregret.specs import (
    AdapterSpec,
    Arm,
    DataSpec,
    FullSpec,
    GridSpec,
    HardwareSpec,
    ModelSpec,
    OptimSpec,
    QuestionSpec,
    RewardSpec,
    RLSpec,
    RunSpec,
    SlotSpec,
    TrainSpec,
)
from lowregret.studies.asking import wanted_cells
from lowregret.studies.equal_parameters import matched_ranks
from lowregret.studies.packing import pack_cells
from lowregret.studies.questions import ArmTemplate, Base, arm_templates
from studies.cells import cells

MODEL = ModelSpec(source="m")
QUESTION = QuestionSpec(
    protocol="rank", data=DataSpec(source="d"), train=TrainSpec(steps=100, batch_size=8), ranks=(1, 4, 16)
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("shape")
    config = {
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 576, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return Base(shape=read_shape(folder), mean_length=32.0)


def templates(question: QuestionSpec, base: Base) -> tuple[ArmTemplate, ...]:
    return arm_templates(question, {"m": base}, model=MODEL, hardware=HardwareSpec())


def labels(question: QuestionSpec, base: Base) -> list[str]:
    return [template.arm.label for template in templates(question, base)]


def test_the_arms_of_every_protocol(base: Base):
    assert labels(QUESTION, base) == ["r1", "r4", "r16", "full"]
    tied = labels(replace(QUESTION, protocol="learning-rate", ranks=(4, 32)), base)
    assert tied == ["r4", "r32", "full", "r4 alpha 4 alpha = r"]
    batch = replace(QUESTION, protocol="batch-size", ranks=(4,), batch_sizes=(8, 32, 80))
    arms = [template.arm for template in templates(batch, base)]
    assert [(a.batch_size, a.steps, a.variant) for a in arms if a.method == "lora"] == [
        (8, 100, ""), (8, 10, "equal steps"), (32, 25, ""), (32, 10, "equal steps"), (80, 10, ""),
    ]  # fmt: skip
    assert labels(replace(QUESTION, protocol="certify"), base) == ["r1", "full"]
    assert labels(replace(QUESTION, protocol="early"), base) == ["r1", "r4", "r16"]
    ratio = replace(QUESTION, protocol="ratio", alphas=(8.0, 32.0), run_lengths=(50, 100))
    assert [(t.arm.label, t.arm.steps) for t in templates(ratio, base)] == [
        ("r1 alpha 8", 50), ("r1", 50), ("full", 50), ("r1 alpha 8", 100), ("r1", 100), ("full", 100),
    ]  # fmt: skip


def test_fidelity_pairs_every_arm_with_its_usual_twin(base: Base):
    question = replace(QUESTION, protocol="fidelity", ranks=(4, 16), run_lengths=(8, 100))
    arms = templates(question, base)
    assert [(t.arm.label, t.arm.steps) for t in arms] == [
        (label, steps) for steps in (8, 100) for label in ("r4", "r4 add", "r16", "r16 add", "full", "full nearest")
    ]
    assert {t.run.train.drop_dominated for t in arms} == {None}
    measured = {(t.arm.variant, t.arm.steps): t.run.train.fidelity_at for t in arms}
    assert measured == {
        ("", 8): (1, 3, 8), ("add", 8): (), ("nearest", 8): (),
        ("", 100): (1, 3, 10, 30, 100), ("add", 100): (), ("nearest", 100): (),
    }  # fmt: skip
    weights = [t.run.slots[0].weights for t in arms[:6]]
    assert [w.arithmetic for w in weights if isinstance(w, AdapterSpec)] == ["accumulator", "add"] * 2
    assert [(w.rounding, w.start, w.support) for w in weights if isinstance(w, FullSpec)] == [
        ("stochastic", "bf16", "matched"), ("nearest", "bf16", "matched"),
    ]  # fmt: skip
    # A twin costs what the arm costs, so that nothing but the variant tells them apart.
    assert arms[1].arm == replace(arms[0].arm, variant="add")
    chosen = replace(question, train=replace(question.train, fidelity_at=(2, 50)))
    assert {t.run.train.fidelity_at for t in templates(chosen, base) if not t.arm.variant} == {(2,), (2, 50)}


def test_what_is_compared_rate_by_rate_is_trained_at_the_same_rates(base: Base):
    question = replace(QUESTION, protocol="fidelity", ranks=(4,))
    arms = {template.arm.label: template for template in templates(question, base)}
    first = wanted_cells(question, tuple(arms.values()), [])
    rates = {label: {lr for t, lr, _ in first if t.arm.label == label} for label in arms}
    assert rates["r4"] == rates["r4 add"] != rates["full"] == rates["full nearest"]
    # The twin's minimum lies higher: what it asks for next, the arm is trained at too.
    outcomes = [
        *cells(arms["r4"].arm, lambda rate, seed: abs(math.log(rate / arms["r4"].start)), rates=sorted(rates["r4"])),
        *cells(arms["r4 add"].arm, lambda rate, seed: -rate, rates=sorted(rates["r4"])),
    ]
    asked = replace(question, seeds=tuple(range(5)))
    later = wanted_cells(asked, tuple(arms.values()), outcomes)
    grown = {label: {lr for t, lr, _ in later if t.arm.label == label} for label in arms}
    assert grown["r4"] == grown["r4 add"] > rates["r4"]
    assert max(grown["r4"]) > max(rates["r4"])


RL = RLSpec(rewards=(RewardSpec(source="exact"),))


def test_cells_of_rl_train_by_reinforcement_and_to_the_end(base: Base):
    question = replace(QUESTION, protocol="rl", rl=RL)
    assert labels(question, base) == ["r1", "r4", "r16", "full"]
    assert {(t.run.task, t.run.rl, t.run.train.drop_dominated) for t in templates(question, base)} == {("rl", RL, None)}
    assert all(t.run.train.drop_dominated for t in templates(QUESTION, base))
    starts = {t.arm.method: t.start for t in templates(question, base)}
    assert 1 < starts["lora"] / starts["full"] < 10  # the planner's rates for RL, not those for SFT
    arms = [t.arm for t in templates(replace(question, protocol="rl-layers", ranks=(8,)), base)]
    assert [arm.targets for arm in arms] == [("attention",), ("mlp",), ("all",), ("all",)]
    assert max(a.params for a in arms[:3]) / min(a.params for a in arms[:3]) < 1.01
    assert (arms[-1].method, len(arms)) == ("full", 4)


def test_layers_are_compared_at_equal_parameters(base: Base):
    arms = [t.arm for t in templates(replace(QUESTION, protocol="layers", ranks=(8,)), base)]
    by_targets = {arm.targets: arm.params for arm in arms[:3]}
    assert set(by_targets) == {("attention",), ("mlp",), ("all",)}
    # Widths of 128 and 352 allow no exact match in reach; C7 asks for 2 %.
    assert max(by_targets.values()) / min(by_targets.values()) < 1.01


@given(attention=st.integers(1, 64), mlp=st.integers(1, 64), least=st.integers(1, 32))
def test_matched_ranks_match_where_they_can(attention: int, mlp: int, least: int):
    params = {"attention": attention, "mlp": mlp, "all": attention + mlp}
    ranks = matched_ranks(params, least)
    counts = {kind: ranks[kind] * params[kind] for kind in params}
    assert all(rank >= 1 for rank in ranks.values())
    exact = [
        rank for rank in range(least, 8 * least + 1) if all(rank * attention % each == 0 for each in params.values())
    ]
    if exact:
        assert set(counts.values()) == {exact[0] * attention}


def test_counted_arithmetic_goes_with_the_arm(base: Base):
    lora, *_, full = (template.arm for template in templates(QUESTION, base))
    adapted = select(base.shape, ("all",), unembed=False)
    cost = flops(base.shape, method="lora", adapted=adapted, rank=1, mean_length=32.0)
    assert lora.multiply_adds == cost.per_token < full.multiply_adds


def test_capacity_offers_bits_for_each_parameter(base: Base):
    question = replace(
        QUESTION, protocol="capacity", ranks=(1, 2), loads=(0.5, 4.0), bits_per_example=64.0,
        train=TrainSpec(epochs=10, batch_size=4),
    )  # fmt: skip
    arms = templates(question, base)
    assert [template.arm.variant for template in arms] == ["load 0.5", "load 4"] * 2
    for template in arms:
        number = round(template.arm.offered_bits / 64)
        assert template.arm.offered_bits == 64 * number
        assert template.run.data.limit == number + 8
        assert template.arm.steps == template.run.train.steps == -(-number * 10 // 4)
    offered = [template.arm.offered_bits / template.arm.params for template in arms]
    assert offered == pytest.approx([0.5, 4.0, 0.5, 4.0], rel=0.1)


def test_a_seed_decides_a_and_the_order_and_the_rounding(base: Base):
    lora, *_, full = templates(QUESTION, base)
    one, two = lora.cell(1e-3, 1), lora.cell(1e-3, 2)
    assert one.slots[0].data_seed == 1
    assert isinstance(one.slots[0].weights, AdapterSpec)
    assert one.slots[0].weights.init_seed == 1
    assert one != two
    weights = full.cell(1e-3, 2).slots[0].weights
    assert isinstance(weights, FullSpec)
    assert weights.rounding_seed == 2
    assert weights.support == "matched"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": "nonsense"}, "protocol: 'nonsense' is not known"),
        ({"seeds": ()}, "seeds: a question needs at least one"),
        ({"train": TrainSpec()}, "train.steps is missing"),
        ({"protocol": "batch-size"}, "needs at least two batch sizes"),
        ({"protocol": "capacity"}, "needs loads and bits_per_example"),
        ({"protocol": "fidelity", "train": TrainSpec(steps=8, fidelity_at=(9,))}, "no run has a step 9"),
        ({"protocol": "rl"}, "rl: rl is missing; give its rewards"),
        ({"protocol": "rl-layers"}, "rl is missing"),
        ({"rl": RL}, "rank: rl is for rl and rl-layers; leave it out"),
    ],
)
def test_a_question_that_can_not_be_asked(change: dict[str, object], said: str, base: Base):
    with pytest.raises(SpecError, match=said):
        templates(replace(QUESTION, **change), base)  # pyright: ignore[reportArgumentType]


def test_fidelity_is_about_bf16(base: Base):
    question = replace(QUESTION, protocol="fidelity")
    with pytest.raises(SpecError, match="fp32 swallows nothing; give --dtype bf16"):
        arm_templates(question, {"m": base}, model=MODEL, hardware=HardwareSpec(dtype="fp32"))


def test_fixed_paper_and_adaptive_grids(base: Base):
    arms = templates(QUESTION, base)
    fixed = replace(QUESTION, grid=GridSpec(kind="fixed", rates=(1e-3, 3e-3), full_rates=(1e-4,)))
    wanted = wanted_cells(fixed, arms, [])
    assert len(wanted) == (3 * 2 + 1) * 3
    assert {lr for template, lr, _ in wanted if template.arm.method == "full"} == {1e-4}
    paper = wanted_cells(replace(QUESTION, grid=GridSpec(kind="paper", points=6)), arms, [])
    assert len(paper) == 4 * 6 * 3
    first = wanted_cells(QUESTION, arms, [])
    # The middle rank and FullFT go first; the others learn from them.
    assert {template.arm.label for template, _, _ in first} == {"r4", "full"}
    with pytest.raises(SpecError, match="needs its learning rates"):
        wanted_cells(replace(QUESTION, grid=GridSpec(kind="fixed")), arms, [])


def test_an_adaptive_grid_keeps_what_it_has_and_asks_for_more(base: Base):
    arms = templates(QUESTION, base)
    lora = next(template for template in arms if template.arm.label == "r4")
    rates = sorted({lr for template, lr, _ in wanted_cells(QUESTION, arms, []) if template.arm == lora.arm})
    falling = cells(lora.arm, lambda rate, seed: -rate, rates=rates, seeds=QUESTION.seeds)
    more = sorted({lr for template, lr, _ in wanted_cells(QUESTION, arms, falling) if template.arm == lora.arm})
    assert set(rates) < set(more)
    assert max(more) > max(rates)


def test_early_compares_ranks_at_one_rate(base: Base):
    question = replace(QUESTION, protocol="early")
    rates = {lr for _, lr, _ in wanted_cells(question, templates(question, base), [])}
    assert len(rates) == 1


@given(limit=st.integers(1, 20), workers=st.integers(1, 4), number=st.integers(1, 40))
def test_banks_hold_every_cell_once(limit: int, workers: int, number: int):
    runs = [
        ArmTemplate(arm=cells_arm(), run=run_of(QUESTION, full=k % 5 == 0), start=1e-3).cell(1e-3, k)
        for k in range(number)
    ]
    named = [(f"cell{k}", run) for k, run in enumerate(runs)]
    banks = pack_cells(named, slots_per_bank=limit, workers=workers)
    assert sorted(cell for bank in banks for cell in bank.cells) == sorted(name for name, _ in named)
    assert len({bank.bank for bank in banks}) == len(banks)
    kinds = dict(named)
    for bank in banks:
        full = [isinstance(kinds[cell].slots[0].weights, FullSpec) for cell in bank.cells]
        assert len(bank.cells) <= limit
        assert full == [False] * len(full) or full == [True]
    assert banks == pack_cells(named, slots_per_bank=limit, workers=workers)


def cells_arm() -> Arm:
    return Arm(method="lora", rank=4, params=1, batch_size=8, steps=10)


def run_of(question: QuestionSpec, *, full: bool) -> RunSpec:
    weights = FullSpec() if full else AdapterSpec(rank=4)
    slot = SlotSpec(name="cell", weights=weights, optim=OptimSpec())
    return RunSpec(model=MODEL, data=question.data, slots=(slot,), train=question.train)
