"""From a spec to a plan: what is filled in and why, what is refused, what is warned of."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowregret.errors import CapacityError, DataError, LowregretError, SpecError
from lowregret.planner.flops import break_even_rank
from lowregret.planner.memory import MemoryQuestion, memory, needed_bytes
from lowregret.planner.recommend import assumed_shape
from lowregret.planner.resolve import resolve
from lowregret.specs import (
    AdapterSpec,
    DataFacts,
    DataSpec,
    DeviceFacts,
    FullSpec,
    HardwareSpec,
    ModelSpec,
    OptimSpec,
    ResolvedPlan,
    RunSpec,
    ScheduleSpec,
    SlotSpec,
    TrainSpec,
)
from lowregret.specs.codec import from_toml, to_toml

SHAPE = replace(assumed_shape(512, 4), model_type="llama", source="config.json", vocab_size=1000)
FACTS = DataFacts(num_examples=1000, num_tokens=200_000, num_completion_tokens=100_000, longest=400)
CPU = DeviceFacts(kind="cpu", memory_bytes=16 << 30, bf16_fast=True, threads=2)


def slot(name: str = "r8", weights: AdapterSpec | FullSpec | None = None, **optim: float) -> SlotSpec:
    return SlotSpec(name=name, weights=weights or AdapterSpec(rank=8), optim=OptimSpec(**optim))  # pyright: ignore[reportArgumentType]


def run(*slots: SlotSpec, **fields: object) -> RunSpec:
    spec = RunSpec(model=ModelSpec(source="m"), data=DataSpec(source="d"), slots=slots or (slot(),))
    return replace(spec, **fields)  # pyright: ignore[reportArgumentType]


def plan_of(spec: RunSpec, facts: DataFacts = FACTS, hardware: DeviceFacts = CPU) -> ResolvedPlan:
    return resolve(spec, shape=SHAPE, facts=facts, hardware=hardware)


def test_everything_open_is_filled_in_with_a_reason() -> None:
    plan = plan_of(run(slot("r8"), slot("r64", AdapterSpec(rank=64)), slot("full", FullSpec())))
    assert plan.steps == plan.spec.train.steps == 125
    assert (plan.device, plan.dtype, plan.threads) == ("cpu", "bf16", 2)
    rates = {s.name: s.optim.lr for s in plan.spec.slots}
    assert rates["full"] is not None
    assert rates["r8"] is not None
    assert rates["r64"] is not None
    assert rates["full"] < rates["r8"] < rates["r64"]
    names = [derived.name for derived in plan.derived]
    assert names == [
        "hardware.device",
        "hardware.dtype",
        "hardware.threads",
        "train.steps",
        "slots.r8.optim.lr",
        "slots.r64.optim.lr",
        "slots.full.optim.lr",
        "hardware.tokens_per_microbatch",
    ]
    assert all(derived.reason and derived.source for derived in plan.derived)
    assert plan.memory_bytes["total"] < CPU.memory_bytes


def test_what_the_user_set_stays() -> None:
    hardware = HardwareSpec(device="cpu", dtype="fp32", threads=1, tokens_per_microbatch=500)
    plan = plan_of(run(slot(lr=1e-3, lr_b=2e-3), train=TrainSpec(steps=77), hardware=hardware))
    assert plan.derived == ()
    assert plan.spec.hardware == hardware
    assert (plan.steps, plan.spec.slots[0].optim.lr, plan.spec.slots[0].optim.lr_b) == (77, 1e-3, 2e-3)
    assert plan.tokens_per_microbatch == 500


def test_a_plan_of_a_plan_is_the_plan() -> None:
    plan = plan_of(run(slot("r8"), slot("full", FullSpec())))
    again = plan_of(plan.spec)
    assert again.spec == plan.spec
    assert (again.steps, again.tokens_per_microbatch, again.memory_bytes) == (
        plan.steps,
        plan.tokens_per_microbatch,
        plan.memory_bytes,
    )


@given(
    examples=st.integers(8, 10**6),
    epochs=st.floats(0.01, 20),
    batch=st.integers(1, 8),
    rank=st.sampled_from([1, 8, 64]),
    length=st.integers(2, 2000),
)
def test_a_plan_reads_back_from_toml(examples: int, epochs: float, batch: int, rank: int, length: int) -> None:
    facts = DataFacts(
        num_examples=examples, num_tokens=examples * length, num_completion_tokens=examples, longest=length
    )
    spec = run(slot("a", AdapterSpec(rank=rank)), train=TrainSpec(epochs=epochs, batch_size=batch))
    plan = plan_of(spec, facts)
    assert plan.steps == max(1, math.ceil(examples * epochs / batch))
    assert from_toml(ResolvedPlan, to_toml(plan)) == plan
    assert plan.tokens_per_microbatch >= length


def test_bf16_only_where_it_is_fast() -> None:
    assert plan_of(run(), hardware=replace(CPU, bf16_fast=False)).dtype == "fp32"
    with pytest.raises(SpecError, match=r"hardware\.device: 'cuda:1' was asked for"):
        plan_of(run(hardware=HardwareSpec(device="cuda:1")))


def needed(tokens: int, *, checkpointing: bool = False, weights: AdapterSpec | FullSpec | None = None) -> int:
    """Bytes that the memory model wants for this many tokens at once."""
    slots = (weights or AdapterSpec(rank=8),)
    question = MemoryQuestion(
        slots=slots, dtype="bf16", tokens=tokens, checkpointing=checkpointing, bf16_fast=CPU.bf16_fast
    )
    return needed_bytes(memory(SHAPE, question))


def with_memory(memory_bytes: int) -> DeviceFacts:
    return replace(CPU, memory_bytes=memory_bytes)


def test_micro_batches_follow_memory_and_examples() -> None:
    roomy = plan_of(run()).tokens_per_microbatch
    assert roomy == 1600
    assert plan_of(run(), hardware=with_memory(needed(1000))).tokens_per_microbatch == 1000
    assert plan_of(run(), replace(FACTS, longest=5000)).tokens_per_microbatch == 5000
    assert plan_of(run(train=TrainSpec(batch_size=1))).tokens_per_microbatch == 400
    gpu = DeviceFacts(kind="cuda", memory_bytes=80 << 30, bf16_fast=True, threads=2)
    assert plan_of(run(train=TrainSpec(batch_size=256)), hardware=gpu).tokens_per_microbatch == 16384


@pytest.mark.parametrize(
    ("memory_bytes", "message"),
    [
        (needed(3000, checkpointing=True), "it fits with activation checkpointing"),
        (needed(300, checkpointing=True), r"--max-length \d+"),
        (100 << 20, "take a smaller base or a machine with more memory"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_nearest_that_does(memory_bytes: int, message: str) -> None:
    hardware = with_memory(memory_bytes)
    facts = replace(FACTS, longest=3000)
    with pytest.raises(CapacityError, match=message) as error:
        plan_of(run(), facts, hardware)
    assert "\n" not in str(error.value)
    # A plan for another machine says so and goes on, unless the memory is the user's own word.
    elsewhere = resolve(run(), shape=SHAPE, facts=facts, hardware=hardware, must_fit=False)
    assert elsewhere.warnings[0] == str(error.value)
    stated = run(hardware=HardwareSpec(memory_bytes=memory_bytes))
    with pytest.raises(CapacityError, match=message):
        resolve(stated, shape=SHAPE, facts=facts, hardware=CPU, must_fit=False)


def test_the_change_that_is_named_fits() -> None:
    hardware = with_memory(needed(3000, checkpointing=True))
    plan = plan_of(run(hardware=HardwareSpec(activation_checkpointing=True)), replace(FACTS, longest=3000), hardware)
    assert needed_bytes(plan.memory_bytes) <= hardware.memory_bytes


def test_full_fine_tuning_too_large_is_refused_with_an_adapter() -> None:
    assert needed(400) < needed(1, checkpointing=True, weights=FullSpec())
    with pytest.raises(CapacityError, match="one adapter of rank 1"):
        plan_of(run(slot("full", FullSpec())), hardware=with_memory(needed(400)))


NAN = float("nan")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (run(slot("r0", AdapterSpec(rank=0))), r"slots\.r0\.weights\.rank: 0 must lie in 1\.\.512"),
        (run(slot("r-1", AdapterSpec(rank=-1))), r"rank: -1 must lie"),
        (run(slot("r513", AdapterSpec(rank=513))), r"rank: 513 must lie"),
        (
            run(slot("r200", AdapterSpec(rank=200))),
            r"rank: 200 is larger than k_proj \(128 x 512\) allows; give at most 128",
        ),
        (run(slot(lr=0.0)), r"slots\.r8\.optim\.lr: 0\.0 must be a positive number"),
        (run(slot(lr=-1e-4)), r"optim\.lr: -0\.0001 must be a positive number"),
        (run(slot(lr=NAN)), r"optim\.lr: nan must be a positive number"),
        (run(slot(lr=math.inf)), r"optim\.lr: inf must be a positive number"),
        (run(slot(lr_b=NAN)), r"optim\.lr_b: nan must be a positive number"),
        (run(slot(eps=-1.0)), r"optim\.eps: -1\.0 must be 0 or more"),
        (run(slot(weight_decay=NAN)), r"optim\.weight_decay: nan must be 0 or more"),
        (run(slot(clip_norm=0.0)), r"optim\.clip_norm: 0\.0 must be a positive number"),
        (run(replace(slot(), optim=OptimSpec(betas=(0.9, 1.0)))), r"optim\.betas: 1\.0 must lie in \[0, 1\)"),
        (run(slot(weights=AdapterSpec(rank=8, alpha=0.0))), r"weights\.alpha: 0\.0 must be a positive number"),
        (run(slot(weights=AdapterSpec(rank=8, alpha=NAN))), r"weights\.alpha: nan must be a positive number"),
        (run(slot(weights=AdapterSpec(rank=8, targets=()))), r"weights\.targets: is empty"),
        (
            run(slot(weights=AdapterSpec(rank=8, targets=("q_prj",)))),
            r"slots\.r8\.weights\.targets: 'q_prj' matches no linear layer of this model; did you mean 'q_proj'\?",
        ),
        (run(slot(), slot()), r"slots: the name 'r8' stands twice"),
        (run(slot("a/b")), r"slots: 'a/b' can't name a folder"),
        (run(slots=()), r"slots: nothing to train"),
        (run(task="dance"), r"task: 'dance' is not known"),
        (run(train=TrainSpec(steps=0)), r"train\.steps: 0 must be at least 1"),
        (run(train=TrainSpec(batch_size=0)), r"train\.batch_size: 0 must be at least 1"),
        (run(train=TrainSpec(batch_size=1001)), r"train\.batch_size: 1001 is more than the 1000 training examples"),
        (run(train=TrainSpec(epochs=NAN)), r"train\.epochs: nan must be a positive number"),
        (run(train=TrainSpec(eval_every=0)), r"train\.eval_every: 0 must be at least 1"),
        (
            run(train=TrainSpec(steps=10, schedule=ScheduleSpec(warmup=10))),
            r"train\.schedule\.warmup: 10 steps leave nothing of a run of 10",
        ),
        (
            run(train=TrainSpec(schedule=ScheduleSpec(warmup=125))),
            r"train\.schedule\.warmup: 125 steps leave nothing of a run of 125",
        ),
        (run(train=TrainSpec(schedule=ScheduleSpec(final=2.0))), r"train\.schedule\.final: 2\.0 must lie in \[0, 1\]"),
        (run(data=DataSpec(source="d", max_length=1)), r"data\.max_length: 1 must be at least 2"),
        (run(data=DataSpec(source="d", limit=0)), r"data\.limit: 0 must be at least 1"),
        (run(hardware=HardwareSpec(device="tpu")), r"hardware\.device: 'tpu' is not known"),
        (run(hardware=HardwareSpec(threads=0)), r"hardware\.threads: 0 must be at least 1"),
    ],
)
def test_bad_specs_are_one_line_with_field_and_remedy(spec: RunSpec, message: str) -> None:
    with pytest.raises(LowregretError, match=message) as error:
        plan_of(spec)
    assert isinstance(error.value, SpecError)
    assert "\n" not in str(error.value)
    assert ";" in str(error.value)


def test_a_tied_head_can_be_adapted_but_not_matched() -> None:
    tied = replace(SHAPE, tied=True)
    adapter = run(slot(weights=AdapterSpec(rank=8, unembed=True)))
    assert resolve(adapter, shape=tied, facts=FACTS, hardware=CPU).steps == 125
    matched = run(slot("full", FullSpec(support="matched", unembed=True)))
    with pytest.raises(SpecError, match="tied to the embedding"):
        resolve(matched, shape=tied, facts=FACTS, hardware=CPU)


def test_no_data_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match="no training examples"):
        plan_of(run(), replace(FACTS, num_examples=0))
    with pytest.raises(DataError, match="no completion tokens"):
        plan_of(run(), replace(FACTS, num_completion_tokens=0))


@pytest.mark.parametrize(
    ("spec", "facts", "words"),
    [
        (run(train=TrainSpec(steps=10)), FACTS, "only 10 steps"),
        (run(train=TrainSpec(batch_size=128)), FACTS, "128 is large for LoRA"),
        (run(slot(weights=AdapterSpec(rank=8, targets=("attention",)))), FACTS, "attention-only"),
        (run(slot(weights=AdapterSpec(rank=8, alpha=8.0))), FACTS, "alpha is tied to the rank"),
        (
            run(slot("a", AdapterSpec(rank=8, alpha=16.0)), slot("b", AdapterSpec(rank=32, alpha=64.0))),
            FACTS,
            "alpha is tied to the rank",
        ),
        (run(), replace(FACTS, num_completion_tokens=10**9), "UNDERCAPACITY"),
        (run(slot(lr=0.5)), FACTS, "beyond any that worked"),
        (run(slot("full", FullSpec())), FACTS, "below 300M parameters"),
        (run(), replace(FACTS, approximate=True), "given or assumed"),
    ],
)
def test_what_the_findings_speak_against_is_warned_of(spec: RunSpec, facts: DataFacts, words: str) -> None:
    assert any(words in warning for warning in plan_of(spec, facts).warnings)


def test_a_rank_above_break_even_is_warned_of() -> None:
    narrow = replace(SHAPE, matrices=tuple(m for m in SHAPE.matrices if m.name in ("q_proj", "o_proj")))
    even = break_even_rank(narrow, narrow.matrices)
    assert even == pytest.approx(512 / 6)
    for rank, warned in ((64, False), (128, True)):
        plan = resolve(run(slot(weights=AdapterSpec(rank=rank))), shape=narrow, facts=FACTS, hardware=CPU)
        assert any("costs more arithmetic" in warning for warning in plan.warnings) == warned


def test_a_good_plan_has_no_warnings() -> None:
    assert plan_of(run()).warnings == ()
