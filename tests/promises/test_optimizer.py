"""Optimizer = torch; accumulation: any split into micro-batches gives one series."""

from __future__ import annotations

import pytest
import torch

from lowregret.adapters.parameters import ParameterBlock
from lowregret.batches import PackedBatch
from lowregret.specs import AdapterSpec, OptimSpec, ScheduleSpec
from lowregret.training.optimizer import AdamW, schedule_factor
from lowregret.training.step import train_step
from tiny import bank_on, examples, optimizers, packed, tiny_llama


def test_ten_steps_equal_torch_adamw_with_settings_for_a_and_b() -> None:
    torch.manual_seed(0)
    spec = OptimSpec(
        lr=3e-3,
        lr_b=1e-3,
        betas=(0.8, 0.95),
        eps=1e-6,
        eps_b=1e-4,
        weight_decay=0.1,
        weight_decay_b=0.02,
        clip_norm=2.0,
    )
    blocks = tuple(
        ParameterBlock(name=role, role=role, value=torch.randn(50).double(), grad=torch.zeros(50).double())
        for role in ("a", "b")
    )
    twins = [torch.nn.Parameter(block.value.clone()) for block in blocks]
    reference = torch.optim.AdamW(
        [
            {"params": [twins[0]], "lr": 3e-3, "eps": 1e-6, "weight_decay": 0.1},
            {"params": [twins[1]], "lr": 1e-3, "eps": 1e-4, "weight_decay": 0.02},
        ],
        betas=(0.8, 0.95),
    )
    ours = AdamW(spec, blocks)
    base_rates = [group["lr"] for group in reference.param_groups]
    for step in range(10):
        factor = 1.0 - 0.05 * step
        for block, twin in zip(blocks, twins, strict=True):
            block.grad.copy_(torch.randn(50).double())
            twin.grad = block.grad.clone()
        expected_norm = torch.nn.utils.clip_grad_norm_(twins, 2.0)
        for group, rate in zip(reference.param_groups, base_rates, strict=True):
            group["lr"] = rate * factor
        reference.step()
        assert ours.step(blocks, factor).norm == pytest.approx(float(expected_norm), rel=1e-12)
    for block, twin in zip(blocks, twins, strict=True):
        # torch clips by max_norm / (norm + 1e-6), we by max_norm / norm: equal to 1e-6
        torch.testing.assert_close(block.value, twin.data, rtol=1e-6, atol=1e-8)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    block = ParameterBlock(name="a", role="a", value=torch.ones(3), grad=torch.tensor([1.0, float("inf"), 0.0]))
    optimizer = AdamW(OptimSpec(lr=1e-2), (block,))
    update = optimizer.step((block,), 1.0)
    assert update.norm == float("inf")
    assert not update.bounded
    assert torch.equal(block.value, torch.ones(3))
    assert optimizer.updates == 0


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ScheduleSpec(), [1.0, 1.0, 1.0, 1.0]),
        (ScheduleSpec(warmup=1), [0.5, 1.0, 1.0, 1.0]),
        (ScheduleSpec(kind="linear"), [1.0, 0.75, 0.5, 0.25]),
        (ScheduleSpec(kind="linear", final=0.5), [1.0, 0.875, 0.75, 0.625]),
        (ScheduleSpec(kind="cosine"), [1.0, 0.8535533905932737, 0.5, 0.14644660940672627]),
    ],
)
def test_schedules(spec: ScheduleSpec, expected: list[float]) -> None:
    assert [schedule_factor(spec, step, 4) for step in (1, 2, 3, 4)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("per_batch", [8, 4, 2])
def test_micro_batches_of_any_size_give_one_loss_series(per_batch: int) -> None:
    def series(size: int) -> list[float]:
        lm, bank = bank_on(tiny_llama(), {"r4": AdapterSpec(rank=4)})
        optimizer = optimizers(bank, {"r4": OptimSpec(lr=5e-3)})
        losses = []
        for step in range(6):
            documents = examples(8, seed=step)
            batches: list[PackedBatch] = [packed({"r4": documents[k : k + size]}) for k in range(0, 8, size)]
            losses.append(train_step(lm, batches, optimizer, factor=1.0)["r4"].loss)
        return losses

    assert series(per_batch) == pytest.approx(series(8), abs=1e-5)
    assert series(8)[0] != series(8)[-1]
