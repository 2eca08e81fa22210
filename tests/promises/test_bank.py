"""Many adapters = many runs; isolation; kernel = reference; fresh adapter = base."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowregret.adapters import jagged, thin
from lowregret.adapters.grouped import (
    Columns,
    accumulate_adapter_gradients,
    grouped_linear,
    grouped_linear_backward,
    grouped_linear_reference,
    padded_columns,
    separate_linear,
    separate_linear_backward,
)
from lowregret.adapters.layer import AdaptedLinear
from lowregret.adapters.routing import Routing
from lowregret.adapters.stacked import accumulate_stacked_gradients, runs_of, stacked_linear, stacked_linear_backward
from lowregret.errors import CapacityError
from lowregret.specs import AdapterSpec, OptimSpec
from lowregret.training.step import forward_backward, train_step
from tiny import bank_on, examples, optimizers, packed, randomise_b, tiny_llama

SLOTS = {
    "r1": (AdapterSpec(rank=1), OptimSpec(lr=3e-3)),
    "r4": (AdapterSpec(rank=4, alpha=8, targets=("attention",), init_seed=1), OptimSpec(lr=1e-3, lr_b=3e-3)),
    "r16": (AdapterSpec(rank=16, targets=("mlp",), unembed=True), OptimSpec(lr=5e-3, weight_decay=0.01)),
    "r7": (
        AdapterSpec(rank=7, alpha=16, targets=("q_proj", "layers.1.mlp.down_proj")),
        OptimSpec(lr=2e-3, clip_norm=1),
    ),
}


def run_slots(names: list[str], dtype: torch.dtype) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Ten steps of these slots in one bank, each with its own data; losses and the update of every master."""
    lm, bank = bank_on(tiny_llama(), {name: SLOTS[name][0] for name in names}, dtype=dtype)
    start = {name: torch.cat([block.value.clone() for block in bank.blocks(name)]) for name in names}
    optimizer = optimizers(bank, {name: SLOTS[name][1] for name in names})
    losses: dict[str, list[float]] = {name: [] for name in names}
    for step in range(10):
        documents = {name: examples(3, seed=100 * list(SLOTS).index(name) + step) for name in names}
        for name, report in train_step(lm, [packed(documents)], optimizer, factor=1.0).items():
            losses[name].append(report.loss)
    update = {name: torch.cat([b.value for b in bank.blocks(name)]) - start[name] for name in names}
    return losses, update


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slots_of_one_bank_equal_separate_runs(dtype: torch.dtype) -> None:
    together_losses, together = run_slots(list(SLOTS), dtype)
    for name in SLOTS:
        alone_losses, alone = run_slots([name], dtype)
        assert alone[name].abs().max() > 0
        if dtype == torch.float32:
            assert together_losses[name] == pytest.approx(alone_losses[name], abs=1e-5)
            assert (together[name] - alone[name]).norm() <= 1e-4 * alone[name].norm()
        else:
            assert together_losses[name] == pytest.approx(alone_losses[name], abs=1e-9)
            torch.testing.assert_close(together[name], alone[name], rtol=0, atol=1e-9)


def test_slots_that_join_and_leave_do_not_touch_the_others() -> None:
    lm, bank = bank_on(tiny_llama(), {"a": AdapterSpec(rank=4)})
    optimizer = optimizers(bank, {"a": OptimSpec(lr=1e-2)})
    train_step(lm, [packed({"a": examples(2)})], optimizer, factor=1.0)
    before = [block.value.clone() for block in bank.blocks("a")]
    with lm.routed(Routing.from_lengths({"a": 5})):
        logits = lm.logits(lm.hidden(packed({"a": examples(1, shortest=5, longest=5)})))
    bank.join("b", AdapterSpec(rank=8, unembed=True))
    bank.leave("b")
    assert all("b" not in site.gradients for site in bank.sites.values())  # nothing of it is kept alive
    bank.join("c", AdapterSpec(rank=2, targets=("mlp",)))
    assert all(torch.equal(b.value, old) for b, old in zip(bank.blocks("a"), before, strict=True))
    with lm.routed(Routing.from_lengths({"a": 5})):
        again = lm.logits(lm.hidden(packed({"a": examples(1, shortest=5, longest=5)})))
    torch.testing.assert_close(again, logits, rtol=1e-5, atol=1e-6)


def test_slots_that_join_together_are_slots_that_join_in_turn() -> None:
    specs = {name: spec for name, (spec, _) in SLOTS.items()}
    (_, in_turn), (_, together) = bank_on(tiny_llama(), specs), bank_on(tiny_llama(), {})
    together.join_all(specs)
    assert together.slots == in_turn.slots
    assert together.sites.keys() == in_turn.sites.keys()
    for site, layer in in_turn.sites.items():
        other = together.sites[site]
        assert other.columns == layer.columns
        assert other.gradients.keys() == layer.gradients.keys()
    for name in specs:
        for one, other in zip(in_turn.blocks(name), together.blocks(name), strict=True):
            assert torch.equal(one.value, other.value)
    with pytest.raises(CapacityError, match="'huge'"):
        together.join_all({"late": AdapterSpec(rank=2), "huge": AdapterSpec(rank=1000)})
    assert together.slots == (*specs, "late")
    assert all("late" in layer.columns for name, layer in together.sites.items() if "lm_head" not in name)


def test_a_slot_without_tokens_stays_bitwise_unchanged() -> None:
    lm, bank = bank_on(tiny_llama(), {"busy": AdapterSpec(rank=4), "idle": AdapterSpec(rank=8)})
    randomise_b(bank, "idle")
    before = [block.value.clone() for block in bank.blocks("idle")]
    optimizer = optimizers(bank, {"busy": OptimSpec(lr=1e-2), "idle": OptimSpec(lr=1e-2, weight_decay=0.1)})
    reports = train_step(lm, [packed({"busy": examples(3)})], optimizer, factor=1.0)
    assert set(reports) == {"busy"}
    assert all(torch.equal(b.value, old) for b, old in zip(bank.blocks("idle"), before, strict=True))
    assert all(not b.grad.any() for b in bank.blocks("idle"))


@pytest.fixture(params=[True, False], ids=["grouped", "span by span"])
def as_on_a_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Folded bf16 goes the way that it goes on CUDA; torch's own CPU operations make the numbers. How often it went."""
    used: list[int] = []
    product = jagged.accumulate_jagged_gradients
    monkeypatch.setattr(jagged, "serves", lambda folded: folded.dtype == torch.bfloat16)
    monkeypatch.setattr(jagged, "_has_kernel", lambda device: request.param)
    monkeypatch.setattr(jagged, "accumulate_jagged_gradients", lambda *given: used.append(1) or product(*given))
    monkeypatch.setattr(AdaptedLinear, "stacks_wide", False)
    monkeypatch.setattr(thin, "serves", lambda *_: False)
    return used


def test_jagged_groups_leave_a_nan_with_its_slot(as_on_a_gpu: list[int]) -> None:
    test_a_slot_that_goes_nan_is_retired_and_no_other_changes(torch.bfloat16)
    assert as_on_a_gpu


def test_slots_of_different_ranks_and_targets_train_in_jagged_groups_as_in_turn(
    as_on_a_gpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = {
        "a": AdapterSpec(rank=2),
        "b": AdapterSpec(rank=5, targets=("mlp",), init_seed=1),
        "c": AdapterSpec(rank=8),
    }

    def gradients() -> dict[str, torch.Tensor]:
        lm, bank = bank_on(tiny_llama(width=64), specs, dtype=torch.bfloat16)
        for slot in specs:
            randomise_b(bank, slot)
        batch = packed({slot: examples(3, seed=k) for k, slot in enumerate(specs)})
        forward_backward(lm, batch, dict.fromkeys(specs, 20.0))
        return {slot: torch.cat([block.grad for block in bank.blocks(slot)]) for slot in specs}

    at_once = gradients()
    assert as_on_a_gpu
    monkeypatch.setattr(jagged, "serves", lambda folded: False)
    for slot, in_turn in gradients().items():
        assert in_turn.any()
        assert (at_once[slot] - in_turn).norm() <= 0.02 * in_turn.norm()  # both round activations to bf16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_slot_that_goes_nan_is_retired_and_no_other_changes(dtype: torch.dtype) -> None:
    def three_steps(poisoned: bool) -> list[torch.Tensor]:
        lm, bank = bank_on(
            tiny_llama(), {"bad": AdapterSpec(rank=4), "good": AdapterSpec(rank=4, init_seed=3)}, dtype=dtype
        )
        optimizer = optimizers(bank, {"bad": OptimSpec(lr=1e-2), "good": OptimSpec(lr=1e-2)})
        if poisoned:
            bank.weights["bad"].b.fill_(1e28)  # finite, and overflows in the first forward
            bank.publish("bad")
        for step in range(3):
            documents = {slot: examples(2, seed=step) for slot in ("bad", "good") if slot in bank.slots or not poisoned}
            reports = train_step(lm, [packed(documents)], optimizer, factor=1.0)
            if poisoned and step == 0:
                assert reports["bad"].diverged
                assert not reports["good"].diverged
                assert bank.slots == ("good",)
        return [block.value for block in bank.blocks("good")]

    for healthy, beside_nan in zip(three_steps(False), three_steps(True), strict=True):
        assert torch.isfinite(beside_nan).all()
        torch.testing.assert_close(beside_nan, healthy, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)


def test_a_slot_whose_update_overflows_is_never_published() -> None:
    lm, bank = bank_on(tiny_llama(), {"bad": AdapterSpec(rank=4), "good": AdapterSpec(rank=4)})
    optimizer = optimizers(bank, {"bad": OptimSpec(lr=1e35), "good": OptimSpec(lr=1e-3)})
    reports = train_step(lm, [packed({"bad": examples(2), "good": examples(2)})], optimizer, factor=1.0)
    assert reports["bad"].diverged
    assert not reports["good"].diverged
    reports = train_step(lm, [packed({"good": examples(2)})], optimizer, factor=1.0)
    assert not reports["good"].diverged
    assert bank.slots == ("good",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_fresh_adapter_gives_exactly_the_base(dtype: torch.dtype) -> None:
    lm, _ = bank_on(tiny_llama(), {"r1": AdapterSpec(rank=1), "r16": AdapterSpec(rank=16, unembed=True)}, dtype=dtype)
    batch = packed({"r1": examples(2), "r16": examples(2)})
    logits = []
    for routing in (Routing.from_lengths(batch.slot_lengths), Routing.from_lengths({None: batch.tokens.numel()})):
        with lm.routed(routing), torch.no_grad():
            logits.append(lm.logits(lm.hidden(batch)))
    assert torch.equal(logits[0], logits[1])


def test_the_base_is_the_model_it_was() -> None:
    batch = packed({"r4": examples(3)})
    plain = tiny_llama()
    starts = [0, *torch.tensor(batch.segment_lengths).cumsum(0).tolist()]
    with torch.no_grad():
        expected = torch.cat([plain(batch.tokens[None, a:b]).logits[0] for a, b in pairwise(starts)])
    lm, _ = bank_on(tiny_llama(), {"r4": AdapterSpec(rank=4, unembed=True)})
    with lm.routed(Routing.from_lengths(batch.slot_lengths)), torch.no_grad():
        torch.testing.assert_close(lm.logits(lm.hidden(batch)), expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(
    ranks=st.lists(st.sampled_from([1, 3, 3, 3, 9]), min_size=1, max_size=4),
    lengths=st.lists(st.sampled_from([1, 4, 4, 4, 7]), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
    layout=st.sampled_from(["folded", "separate", "stacked", "jagged"]),
)
def test_kernel_equals_the_loop_forward_and_gradient(
    ranks: list[int], lengths: list[int], seed: int, layout: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # The jagged product has no fp64, and wants rows that align.
    (d_in, d_out), dtype, near = (
        ((8, 16), torch.float32, 1e-4) if layout == "jagged" else ((11, 13), torch.float64, 1e-9)
    )

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    adapters = {f"s{k}": (normal(r, d_in), normal(d_out, r), 0.5 + k) for k, r in enumerate(ranks)}
    spans = Routing.from_lengths({**{f"s{k}": lengths[k] for k in range(len(ranks))}, None: 2}).spans
    x_TD, dy_TF, weight_FD = normal(spans[-1].stop, d_in), normal(spans[-1].stop, d_out), normal(d_out, d_in)
    columns, start = {}, 0
    for slot, (a_RD, _, scaling) in adapters.items():
        columns[slot] = Columns(start=start, rank=a_RD.shape[0], scaling=scaling)
        start += a_RD.shape[0]
    width = padded_columns(start)
    folded = torch.zeros(d_out + width, d_in + width, dtype=dtype)
    folded[:d_out, :d_in] = weight_FD
    for slot, (a_RD, b_FR, scaling) in adapters.items():
        at = columns[slot]
        folded[d_out + at.start : d_out + at.stop, :d_in] = a_RD
        folded[:d_out, d_in + at.start : d_in + at.stop] = scaling * b_FR
    gradients = {slot: (torch.zeros_like(a), torch.zeros_like(b)) for slot, (a, b, _) in adapters.items()}
    if layout == "folded":
        y_TF, us = grouped_linear(x_TD, folded, spans, columns, d_out)
        dx_TD, dus = grouped_linear_backward(dy_TF, folded, spans, columns, d_in)
        accumulate_adapter_gradients(x_TD, dy_TF, us, dus, spans, columns, gradients)
    elif layout == "jagged":
        found = jagged.owners(spans, tuple(columns.items()), width, x_TD.device)
        y_TF, u_TR = jagged.jagged_linear(x_TD, folded, found, d_out)
        dx_TD, du_TR = jagged.jagged_linear_backward(dy_TF, folded, found, d_in)
        jagged.accumulate_jagged_gradients(x_TD, dy_TF, u_TR, du_TR, found, spans, columns, gradients)
    elif layout == "separate":
        down, up = folded[d_out:, :d_in], folded[:d_out, d_in:]
        y_TF, us = separate_linear(x_TD, weight_FD, down, up, spans, columns)
        dx_TD, dus = separate_linear_backward(dy_TF, weight_FD, down, up, spans, columns)
        accumulate_adapter_gradients(x_TD, dy_TF, us, dus, spans, columns, gradients)
    else:
        down, up = folded[d_out:, :d_in], folded[:d_out, d_in:]
        runs = runs_of(spans, columns)
        y_TF, us = stacked_linear(x_TD, weight_FD, down, up, runs)
        dx_TD, dus = stacked_linear_backward(dy_TF, weight_FD, down, up, runs)
        accumulate_stacked_gradients(x_TD, dy_TF, us, dus, runs, columns, gradients)

    leaves = {s: (a.clone().requires_grad_(), b.clone().requires_grad_(), k) for s, (a, b, k) in adapters.items()}
    x_leaf = x_TD.clone().requires_grad_()
    expected = grouped_linear_reference(x_leaf, weight_FD, leaves, spans)
    expected.backward(dy_TF)
    torch.testing.assert_close(y_TF, expected.detach(), rtol=0, atol=near)
    torch.testing.assert_close(dx_TD, x_leaf.grad, rtol=0, atol=near)
    for slot, (a, b, _) in leaves.items():
        torch.testing.assert_close(gradients[slot][0], a.grad, rtol=near, atol=near)
        torch.testing.assert_close(gradients[slot][1], b.grad, rtol=near, atol=near)
