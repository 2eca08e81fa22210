"""Flags become a spec, and no flag is ever ignored."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given as given_values
from hypothesis import strategies as st

from lowregret.cli.flag_groups import DataFlags, HardwareFlags, ModelFlags, SlotFlags, TrainFlags
from lowregret.cli.flags import Plan, Sft
from lowregret.cli.main import parse
from lowregret.cli.reading import short
from lowregret.cli.specs import refuse_changes, slots_of, spec_of
from lowregret.errors import SpecError
from lowregret.specs import AdapterSpec, FullSpec, RunSpec

MINIMAL = ["--model", "m", "--data", "d"]


def spec_from(*flags: str) -> RunSpec:
    command = parse(["sft", *MINIMAL, *flags])
    assert isinstance(command, Sft)
    return spec_of(command)


def test_ranks_and_rates_give_their_product():
    spec = spec_from("--rank", "1,8", "--lr", "1e-4,3e-4")
    assert [slot.name for slot in spec.slots] == ["r1-lr1e-4", "r1-lr3e-4", "r8-lr1e-4", "r8-lr3e-4"]
    assert [slot.optim.lr for slot in spec.slots] == [1e-4, 3e-4, 1e-4, 3e-4]
    assert [slot.weights.rank for slot in spec.slots if isinstance(slot.weights, AdapterSpec)] == [1, 1, 8, 8]


def test_one_rate_stays_out_of_the_names():
    assert [slot.name for slot in spec_from("--rank", "1,8", "--lr", "2e-4").slots] == ["r1", "r8"]


def test_full_stands_beside_adapters_and_alone():
    beside = spec_from("--rank", "4", "--full", "--full-lr", "1e-5", "--support", "matched", "--targets", "mlp")
    assert [slot.name for slot in beside.slots] == ["r4", "full"]
    assert beside.slots[1].weights == FullSpec(support="matched", targets=("mlp",))
    assert beside.slots[1].optim.lr == 1e-5
    assert [slot.name for slot in spec_from("--full").slots] == ["full"]


def test_without_rank_or_full_the_slots_stay_open():
    assert spec_from("--alpha", "16").slots == ()


def test_every_setting_lands_in_its_field():
    spec = spec_from(
        *(
            "--revision",
            "v1",
            "--config",
            "main",
            "--split",
            "train[:9]",
            "--test-split",
            "t",
            "--test-data",
            "t.jsonl",
        ),
        *("--format", "messages", "--columns", "question=problem,answer=solution", "--loss-on", "last"),
        *("--max-length", "64", "--overlong", "truncate", "--validation-size", "5", "--test-size", "6"),
        *("--limit", "7", "--data-seed", "8", "--rank", "2", "--alpha", "16", "--targets", "q_proj,v_proj"),
        *("--unembed", "--seed", "9", "--steps", "10", "--batch-size", "3", "--schedule", "cosine", "--warmup", "2"),
        *("--eval-every", "4", "--checkpoint-every", "5", "--also-eval", "a,b", "--device", "cpu", "--dtype", "fp32"),
        *("--threads", "1", "--tokens-per-microbatch", "99", "--activation-checkpointing", "--track", "wandb"),
    )
    assert (spec.model.source, spec.model.revision) == ("m", "v1")
    data = spec.data
    assert (data.config, data.split, data.test_split, data.test_source) == ("main", "train[:9]", "t", "t.jsonl")
    assert (data.format, data.loss_on, data.overlong) == ("messages", "last", "truncate")
    assert data.columns == (("question", "problem"), ("answer", "solution"))
    assert (data.max_length, data.validation_size, data.test_size, data.limit, data.seed) == (64, 5, 6, 7, 8)
    (slot,) = spec.slots
    assert slot.weights == AdapterSpec(rank=2, alpha=16.0, targets=("q_proj", "v_proj"), unembed=True, init_seed=9)
    assert slot.data_seed == 9
    train = spec.train
    assert (train.steps, train.batch_size, train.eval_every, train.checkpoint_every) == (10, 3, 4, 5)
    assert (train.schedule.kind, train.schedule.warmup, train.also_eval) == ("cosine", 2, ("a", "b"))
    hardware = spec.hardware
    assert (hardware.device, hardware.dtype, hardware.threads) == ("cpu", "fp32", 1)
    assert (hardware.tokens_per_microbatch, hardware.activation_checkpointing) == (99, True)
    assert spec.tracking.tracker == "wandb"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--lr", "fast", "--rank", "8"], "--lr: 'fast'"),
        (["--rank", "1,,8"], "--rank: '1,,8' has an empty item"),
        (["--rank", "1.5"], "--rank: '1.5'"),
        (["--full-lr", "1e-5", "--rank", "8"], "--full-lr: nothing here would use it; add --full"),
        (["--support", "matched"], "--support: nothing here would use it; add --full"),
        (["--lr", "1e-4", "--full"], "--lr: nothing here would use it; give --full-lr"),
        (["--targets", "mlp", "--full"], "--targets: nothing here would use it"),
        (["--alpha", "8", "--full", "--support", "matched"], "--alpha: nothing here would use it"),
        (["--steps", "5", "--epochs", "2"], "--epochs: is not used where --steps is given"),
        (["--columns", "question"], "--columns: 'question' is no role=column"),
    ],
)
def test_a_flag_that_can_not_be_used_is_refused_by_name(flags: list[str], named: str):
    with pytest.raises(SpecError) as caught:
        spec_from(*flags)
    assert str(caught.value).startswith(named)
    assert "\n" not in str(caught.value)


def test_model_and_data_are_asked_for():
    with pytest.raises(SpecError, match="--model: is missing"):
        spec_of(Sft(data=DataFlags(data="d")))
    with pytest.raises(SpecError, match="--data: is missing"):
        spec_of(Sft(model=ModelFlags(model="m")))
    assert spec_of(Plan(model=ModelFlags(model="m"), tokens=7)).data.source == "7 tokens"


STANDING = replace(
    spec_from("--rank", "8", "--lr", "1e-4", "--steps", "20"),
)


@pytest.mark.parametrize(
    "command",
    [
        Sft(),
        Sft(train=TrainFlags(steps=20), model=ModelFlags(model="m")),
        Sft(slots=SlotFlags(rank="8", lr="0.0001")),
    ],
)
def test_flags_that_repeat_the_spec_pass(command: Sft):
    refuse_changes(STANDING, command, where="run.toml", remedy="leave it out")
    # The same flags beside a spec that differs in one value are refused: passing above says something.
    other = replace(STANDING, train=replace(STANDING.train, steps=21))
    with pytest.raises(SpecError, match=r"train\.steps"):
        refuse_changes(other, replace(command, train=TrainFlags(steps=20)), where="run.toml", remedy="leave it out")


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (Sft(train=TrainFlags(steps=21)), "train.steps: the flags say 21, run.toml says 20; leave it out"),
        (Sft(slots=SlotFlags(rank="8", lr="3e-4")), "slots.0.optim.lr: the flags say 0.0003, run.toml says 0.0001"),
        (Sft(slots=SlotFlags(rank="8,16", lr="1e-4")), "slots: the flags say"),
        (Sft(slots=SlotFlags(alpha=4.0)), "--alpha: the slots are those of run.toml"),
        (Sft(hardware=HardwareFlags(dtype="bf16")), "hardware.dtype: the flags say 'bf16', run.toml says 'auto'"),
        (Sft(data=DataFlags(limit=3)), "data.limit: the flags say 3, run.toml says None"),
    ],
)
def test_a_flag_that_differs_from_the_spec_is_refused(command: Sft, named: str):
    with pytest.raises(SpecError) as caught:
        refuse_changes(STANDING, command, where="run.toml", remedy="leave it out")
    assert str(caught.value).startswith(named)


@given_values(st.floats(min_value=1e-12, max_value=10.0))
def test_a_short_rate_is_the_rate(lr: float):
    assert float(short(lr)) == lr


@given_values(st.lists(st.integers(1, 512), min_size=1, max_size=4, unique=True))
def test_slot_names_are_unique_where_ranks_are(ranks: list[int]):
    names = [slot.name for slot in slots_of(SlotFlags(lr="1e-4,2e-4", full=True), ranks)]
    assert len(set(names)) == len(names) == 2 * len(ranks) + 1
