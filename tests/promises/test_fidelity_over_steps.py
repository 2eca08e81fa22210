"""Updates act in full after 1, 3, 10 and 100 steps at rates from 1e-6 to 1e-3; in the usual arithmetics they do not.

What is measured is what a run with `train.fidelity_at` measures (`training.fidelity`), by science.md's definition.
A cell is an arithmetic, a rate and a step. Faithful arithmetic may not fail in any; and in enough of them it has to
pass, since an interval that is wide enough proves nothing. The usual arithmetics have to fail in many: they are the
proof that this test can. The short form leaves out the hundredth step.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lowregret.data.packing import microbatches
from lowregret.kernels import products
from lowregret.models.load import cast_parameters, load_module, load_start, with_bank, with_full
from lowregret.models.locate import ModelFolder
from lowregret.specs import AdapterSpec, FullSpec, OptimSpec
from lowregret.specs.fidelity import NEAR_ONE, fidelity_verdict
from lowregret.store.rows import FidelityRow
from lowregret.training.fidelity import FidelityMeter
from lowregret.training.optimizer import AdamW
from lowregret.training.state import Lane
from lowregret.training.step import train_step
from tiny import examples, optimizers
from tiny_folder import tiny_model_folder

RATES = {"1e-6": 1e-6, "1e-5": 1e-5, "1e-4": 1e-4, "1e-3": 1e-3}
DOCUMENTS = examples(160, seed=1, shortest=16, longest=24)
BUDGET = 4096
CPU = torch.device("cpu")
FAITHFUL = ("accumulator", "merged stochastic", "copy stochastic")
STEPS = [pytest.param((1, 3, 10), id="short"), pytest.param((1, 3, 10, 100), id="hundred", marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """Weights on bf16's grid, wide and large enough for an addition to swallow an update."""
    path = tiny_model_folder(tmp_path_factory.mktemp("base") / "model", width=128, initializer_range=0.1)
    return ModelFolder(path=path, name="tiny", content_hash="0")


@pytest.fixture(params=["folded", "separate", "widened"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The rank at which the bank takes each of its layouts; the first two on a processor that multiplies bf16."""
    monkeypatch.setattr(products, "_cpu_multiplies_bf16", lambda: request.param != "widened")
    return {"folded": 8, "separate": 16, "widened": 8}[request.param]


def adapters(base: ModelFolder, rank: int) -> Lane:
    """One adapter for each rate, all of one start, in one bank."""
    model, bank = with_bank(load_module(base, dtype=torch.bfloat16, device=CPU))
    for name in RATES:
        bank.join(name, AdapterSpec(rank=rank))
    return Lane(model=model, optimizers=optimizers(bank, {name: OptimSpec(lr=lr) for name, lr in RATES.items()}))


def full(base: ModelFolder, lr: float) -> Lane:
    start = load_start(base, FullSpec(), device=CPU)
    masters = {name: p.detach() for name, p in start.named_parameters()}
    model, trained = with_full(cast_parameters(start, torch.bfloat16), FullSpec(), masters=masters)
    return Lane(model=model, optimizers={"full": AdamW(OptimSpec(lr=lr), trained.blocks("full"))})


def measured(base: ModelFolder, lane: Lane, at: tuple[int, ...]) -> list[FidelityRow]:
    """After each of these steps of one fixed batch."""
    meter = FidelityMeter(base, DOCUMENTS, BUDGET)
    rows: list[FidelityRow] = []
    for step in range(1, max(at) + 1):
        train_step(lane.model, microbatches(dict.fromkeys(lane.live, DOCUMENTS), BUDGET), lane.optimizers, factor=1.0)
        rows += meter.rows(lane, step) if step in at else []
    return rows


def hold(rows: list[FidelityRow], passing: dict[str, int], failing: dict[str, int]) -> None:
    """No faithful cell fails; at least so many of each arithmetic pass, or fail."""
    verdicts: dict[str, Counter[str]] = {}
    table = "\n".join(describe(row) for row in rows)
    for row in rows:
        verdicts.setdefault(row.arithmetic, Counter())[fidelity_verdict(row.fidelity, row.low, row.high)] += 1
        if row.arithmetic in FAITHFUL:
            assert row.low <= NEAR_ONE[1], table
            assert row.high >= NEAR_ONE[0], table
    for arithmetic, least in passing.items():
        assert verdicts[arithmetic]["passes"] >= least, f"{arithmetic}: {verdicts[arithmetic]}\n{table}"
    for arithmetic, least in failing.items():
        assert verdicts[arithmetic]["fails"] >= least, f"{arithmetic}: {verdicts[arithmetic]}\n{table}"


def describe(row: FidelityRow) -> str:
    verdict = fidelity_verdict(row.fidelity, row.low, row.high)
    return (
        f"{row.slot:>5} {row.step:>4} {row.arithmetic:>18}: {row.fidelity:6.2f} ({row.low:.2f} to {row.high:.2f}) of "
        f"{row.fp32_drop:.5f} nats: {verdict}"
    )


@pytest.mark.parametrize("at", STEPS)
def test_adapters_act_in_full_in_every_layout_and_merged(base: ModelFolder, layout: int, at: tuple[int, ...]) -> None:
    rows = measured(base, adapters(base, layout), at)
    assert len(rows) == len(RATES) * len(at) * 5
    hold(rows, {}, {})


@pytest.mark.parametrize("at", STEPS)
def test_full_fine_tuning_acts_in_full(base: ModelFolder, at: tuple[int, ...]) -> None:
    rows = [row for lr in RATES.values() for row in measured(base, full(base, lr), at)]
    assert len(rows) == len(RATES) * len(at) * 2
    hold(rows, {}, {})
