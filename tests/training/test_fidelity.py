"""Forward fidelity as a run measures it, held against models that are put together by hand for each arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.full import FullParameters
from lowregret.adapters.peft_format import StoredAdapter
from lowregret.data.packing import microbatches
from lowregret.errors import SpecError
from lowregret.export.merge import Rounding, merge
from lowregret.models.causal_lm import CausalLM
from lowregret.models.load import cast_parameters, load_module, load_start, with_bank, with_full
from lowregret.models.locate import ModelFolder
from lowregret.specs import AdapterSpec, Arithmetic, FullSpec, OptimSpec
from lowregret.specs.fidelity import LEAST_LOW, fidelity_verdict
from lowregret.store.rows import FidelityRow
from lowregret.training.evaluate import BASE, evaluate
from lowregret.training.fidelity import FidelityMeter
from lowregret.training.measure import forward_fidelity
from lowregret.training.optimizer import AdamW
from lowregret.training.state import Lane
from lowregret.training.step import train_step
from tiny import examples, optimizers
from tiny_folder import tiny_model_folder

DOCUMENTS = examples(384, seed=1, shortest=16, longest=24)
TOKENS = [document.num_completion_tokens for document in DOCUMENTS]
BUDGET = 4096
CPU = torch.device("cpu")
SLOTS = {"r8": AdapterSpec(rank=8), "r4": AdapterSpec(rank=4, targets=("mlp",), arithmetic="add")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A base whose weights lie on bf16's grid, wide and large enough for an addition to swallow an update."""
    path = tiny_model_folder(tmp_path_factory.mktemp("base") / "model", width=128, initializer_range=0.1)
    return ModelFolder(path=path, name="tiny", content_hash="0")


def lane_of(folder: ModelFolder, slots: dict[str, AdapterSpec], *, lr: float = 4e-4) -> Lane:
    """After one step."""
    model, bank = with_bank(load_module(folder, dtype=torch.bfloat16, device=CPU))
    for name, spec in slots.items():
        bank.join(name, spec)
    lane = Lane(model=model, optimizers=optimizers(bank, dict.fromkeys(slots, OptimSpec(lr=lr))))
    step(lane)
    return lane


def full_lane(folder: ModelFolder, spec: FullSpec, *, lr: float = 3e-5) -> Lane:
    start = load_start(folder, spec, device=CPU)
    masters = {name: p.detach() for name, p in start.named_parameters()}
    model, full = with_full(cast_parameters(start, torch.bfloat16), spec, masters=masters)
    lane = Lane(model=model, optimizers={"full": AdamW(OptimSpec(lr=lr), full.blocks("full"))})
    step(lane)
    return lane


def step(lane: Lane) -> None:
    train_step(lane.model, microbatches(dict.fromkeys(lane.live, DOCUMENTS), BUDGET), lane.optimizers, factor=1.0)


def bank_of(lane: Lane) -> AdapterBank:
    assert isinstance(lane.trainable, AdapterBank)
    return lane.trainable


def losses(model: CausalLM, slot: str) -> tuple[float, ...]:
    return evaluate(model, DOCUMENTS, (slot,), BUDGET)[slot].by_example


def rows_of(folder: ModelFolder, lane: Lane, at: int = 1) -> dict[tuple[str, str], FidelityRow]:
    rows = FidelityMeter(folder, DOCUMENTS, BUDGET).rows(lane, at)
    return {(row.slot, row.arithmetic): row for row in rows}


@pytest.fixture(scope="module")
def measured(folder: ModelFolder) -> tuple[Lane, dict[tuple[str, str], FidelityRow]]:
    lane = lane_of(folder, SLOTS)
    return lane, rows_of(folder, lane)


def with_masters(folder: ModelFolder, lane: Lane, slot: str, dtype: torch.dtype, arithmetic: Arithmetic) -> CausalLM:
    """The adapter alone on a base of its own."""
    model, bank = with_bank(load_module(folder, dtype=dtype, device=CPU))
    bank.join(slot, replace(SLOTS[slot], arithmetic=arithmetic))
    for mine, theirs in zip(bank.blocks(slot), bank_of(lane).blocks(slot), strict=True):
        mine.value.copy_(theirs.value)
    bank.publish(slot)
    return model


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("arithmetic", ["accumulator", "add", "addmm"])
def test_each_arithmetic_is_that_of_a_bank_of_its_own(
    folder: ModelFolder, measured: tuple[Lane, dict[tuple[str, str], FidelityRow]], slot: str, arithmetic: Arithmetic
) -> None:
    lane, rows = measured
    exact = with_masters(folder, lane, slot, torch.float32, "accumulator")
    tested = with_masters(folder, lane, slot, torch.bfloat16, arithmetic)
    expected = forward_fidelity(
        before_fp32=losses(exact, BASE),
        after_fp32=losses(exact, slot),
        before=losses(tested, BASE),
        after=losses(tested, slot),
        tokens=TOKENS,
    )
    row = rows[slot, arithmetic]
    # Another slot beside it pads the folded matrix, so that the products' last bits may differ.
    assert row.fidelity == pytest.approx(expected.estimate, abs=0.03)
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high), abs=0.06)
    assert row.fp32_drop == pytest.approx(expected.fp32_drop, rel=1e-3)
    assert row.drop == pytest.approx(row.fidelity * row.fp32_drop, rel=1e-6)
    assert (row.step, row.sequences, row.moved) == (1, len(DOCUMENTS), None)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_merged_weights_are_those_of_an_export(
    folder: ModelFolder, measured: tuple[Lane, dict[tuple[str, str], FidelityRow]], rounding: Rounding
) -> None:
    lane, rows = measured
    weights = bank_of(lane).weights["r8"]
    stored = StoredAdapter(rank=8, alpha=32.0, a_of=weights.a_of, b_of=weights.b_of)
    module = load_module(folder, dtype=torch.float32, device=CPU)
    report = merge(module, stored, dtype=torch.bfloat16, rounding=rounding)
    row = rows["r8", f"merged {rounding}"]
    plain = CausalLM(load_module(folder, dtype=torch.bfloat16, device=CPU))
    drop = (sum(losses(plain, BASE)) - sum(losses(CausalLM(module), BASE))) / sum(TOKENS)
    # Rounded to nearest the two are the same weights; at random they are two draws.
    assert row.drop == pytest.approx(drop, rel=1e-6 if rounding == "nearest" else 0.15)
    assert row.moved == pytest.approx(report.share_of_weights_moved, abs=1e-9 if rounding == "nearest" else 0.01)


def test_what_the_definition_says_of_each(measured: tuple[Lane, dict[tuple[str, str], FidelityRow]]) -> None:
    _, rows = measured
    for name in ("accumulator", "merged stochastic"):
        row = rows["r8", name]
        assert fidelity_verdict(row.fidelity, row.low, row.high) == "passes", row
    for name in ("add", "addmm", "merged nearest"):
        assert rows["r8", name].high < LEAST_LOW, name


def test_full_weights_are_measured_in_both_roundings_and_left_as_they_were(folder: ModelFolder) -> None:
    lane = full_lane(folder, FullSpec(support="matched"))
    full = lane.trainable
    assert isinstance(full, FullParameters)
    before = {name: p.detach().clone() for name, p in lane.model.model.named_parameters()}
    rows = rows_of(folder, lane)
    assert all(torch.equal(p, before[name]) for name, p in lane.model.model.named_parameters())
    nearest, stochastic = rows["full", "copy nearest"], rows["full", "copy stochastic"]
    assert nearest.high < 0.6
    assert stochastic.fidelity == pytest.approx(1, abs=0.15)
    exact = load_start(folder, full.spec, device=CPU)
    start = losses(CausalLM(exact), "full")
    moved = 0
    for name, parameter in exact.named_parameters():
        if name in full.masters:
            moved += int((full.masters[name].bfloat16() != parameter.bfloat16()).sum())
            parameter.data.copy_(full.masters[name])
    assert nearest.moved == moved / full.num_parameters
    assert nearest.moved is not None
    assert stochastic.moved is not None
    assert 0 < nearest.moved < stochastic.moved
    assert nearest.fp32_drop == pytest.approx((sum(start) - sum(losses(CausalLM(exact), "full"))) / sum(TOKENS))
    # The working copy that trains is one of the two that are measured.
    own = (sum(losses(CausalLM(load_module(folder, dtype=torch.bfloat16, device=CPU)), "full"))) - sum(
        losses(lane.model, "full")
    )
    assert stochastic.drop == pytest.approx(own / sum(TOKENS), rel=1e-6)


def test_weights_between_two_bf16_numbers_are_dithered_by_chance_unless_they_start_on_the_grid(
    folder: ModelFolder, tmp_path: Path
) -> None:
    """A dequantised base would make the nearest copy look faithful."""
    finer = load_module(folder, dtype=torch.float32, device=CPU)
    generator = torch.Generator().manual_seed(0)
    for parameter in finer.parameters():
        parameter.data.mul_(1 + 2**-6 * (2 * torch.rand(parameter.shape, generator=generator) - 1))
    cast(Any, finer).save_pretrained(tmp_path / "finer")
    stored = ModelFolder(path=tmp_path / "finer", name="finer", content_hash="1")
    found = {start: rows_of(stored, full_lane(stored, FullSpec(start=start))) for start in ("stored", "bf16")}
    assert found["stored"]["full", "copy nearest"].fidelity == pytest.approx(1, abs=0.15)
    assert found["bf16"]["full", "copy nearest"].high < 0.6
    assert found["bf16"]["full", "copy stochastic"].fidelity == pytest.approx(1, abs=0.15)


def test_a_retired_slot_is_left_out_and_a_tied_head_may_be_adapted(folder: ModelFolder) -> None:
    lane = lane_of(folder, {"head": AdapterSpec(rank=2, unembed=True), "gone": AdapterSpec(rank=2)}, lr=1e-3)
    lane.trainable.retire("gone")
    rows = rows_of(folder, lane)
    assert {slot for slot, _ in rows} == {"head"}
    assert rows["head", "merged stochastic"].fidelity == pytest.approx(1, abs=0.15)
    alone = full_lane(folder, FullSpec())
    alone.trainable.retire("full")
    assert rows_of(folder, alone) == {}


def test_measuring_again_gives_the_same_and_one_sequence_gives_no_interval(folder: ModelFolder) -> None:
    lane = lane_of(folder, {"r4": AdapterSpec(rank=4)})
    meter = FidelityMeter(folder, DOCUMENTS, BUDGET)
    assert meter.rows(lane, 3) == meter.rows(lane, 3) == FidelityMeter(folder, DOCUMENTS, BUDGET).rows(lane, 3)
    with pytest.raises(SpecError, match="needs 2 validation examples, there is 1; raise --validation-size"):
        FidelityMeter(folder, DOCUMENTS[:1], BUDGET)
