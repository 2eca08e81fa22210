"""Updates act in full after 1, 3, 10 and 100 steps at rates from 1e-6 to 1e-3; in the usual arithmetics they do not.

What is measured is what a run with `train.fidelity_at` measures (`training.fidelity`), by science.md's definition.
A cell is an arithmetic, a rate and a step. In every cell a faithful arithmetic may lie off 1 by no more than its
noise: 3.3 standard errors, since there are dozens of cells. In enough cells it has to pass by the definition, because
what is noisy enough proves nothing. The usual arithmetics have to fail in many: they prove that this test can.
What is rounded stochastically has a noise of its own, of the draw, which an interval over sequences does not see and
which weighs in a base as small as this: it is averaged over draws.
The short form takes the bank's layout of this processor and leaves out the hundredth step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from lowregret.adapters.full import FullParameters
from lowregret.data.packing import microbatches
from lowregret.kernels import products
from lowregret.models.causal_lm import CausalLM
from lowregret.models.load import cast_parameters, load_module, load_start, with_bank, with_full
from lowregret.models.locate import ModelFolder
from lowregret.specs import AdapterSpec, FullSpec, OptimSpec, Rounding
from lowregret.specs.fidelity import NEAR_ONE, fidelity_verdict
from lowregret.store.rows import FidelityRow
from lowregret.training.evaluate import evaluate
from lowregret.training.fidelity import FidelityMeter
from lowregret.training.measure import Fidelity, forward_fidelity
from lowregret.training.optimizer import AdamW
from lowregret.training.state import Lane
from lowregret.training.step import train_step
from tiny import examples, optimizers
from tiny_folder import tiny_model_folder

RATES = {"1e-6": 1e-6, "1e-5": 1e-5, "1e-4": 1e-4, "1e-3": 1e-3}
DOCUMENTS = examples(96, seed=1, shortest=16, longest=24)
TOKENS = [document.num_completion_tokens for document in DOCUMENTS]
BUDGET = 4096
CPU = torch.device("cpu")
DRAWS = 8
SHORT, LONG = (1, 3, 10), (1, 3, 10, 100)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """Weights on bf16's grid, wide and large enough for an addition to swallow an update."""
    path = tiny_model_folder(tmp_path_factory.mktemp("base") / "model", width=128, initializer_range=0.1)
    return ModelFolder(path=path, name="tiny", content_hash="0")


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


def train(lane: Lane) -> None:
    """One step on one fixed batch."""
    train_step(lane.model, microbatches(dict.fromkeys(lane.live, DOCUMENTS), BUDGET), lane.optimizers, factor=1.0)


def describe(row: FidelityRow) -> str:
    verdict = fidelity_verdict(row.fidelity, row.low, row.high)
    return (
        f"{row.slot:>5} {row.step:>4} {row.arithmetic:>18}: {row.fidelity:6.2f} ({row.low:.2f} to {row.high:.2f}) of "
        f"{row.fp32_drop:.5f} nats: {verdict}"
    )


def is_one_within_noise(estimate: float, low: float, high: float) -> bool:
    """At 3.3 standard errors (p = 0.001) beside what passes anyway, from a 95 % interval of twice 1.96."""
    return abs(estimate - 1) <= NEAR_ONE[1] - 1 + 3.3 / (2 * 1.96) * (high - low)


def hold_in_full(base: ModelFolder, rank: int, at: tuple[int, ...]) -> None:
    lane, meter = adapters(base, rank), FidelityMeter(base, DOCUMENTS, BUDGET)
    rows: list[FidelityRow] = []
    for step in range(1, max(at) + 1):
        train(lane)
        rows += meter.rows(lane, step) if step in at else []
    table = "\n".join(map(describe, rows))
    verdicts = Counter((row.arithmetic, fidelity_verdict(row.fidelity, row.low, row.high)) for row in rows)
    for row in rows:
        if row.arithmetic == "accumulator":
            assert is_one_within_noise(row.fidelity, row.low, row.high), table
    assert verdicts["accumulator", "passes"] >= len(at) + 1, table
    for usual in ("add", "addmm", "merged nearest"):
        assert verdicts[usual, "fails"] >= 4, f"{usual}: {table}"
    small = [row for row in rows if row.arithmetic == "merged stochastic" and row.slot != "1e-3"]
    assert sum(row.drop for row in small) == pytest.approx(sum(row.fp32_drop for row in small), rel=0.1), table


def test_adapters_act_in_full_and_merged(base: ModelFolder) -> None:
    hold_in_full(base, 8, SHORT)


@pytest.mark.long
@pytest.mark.parametrize(("layout", "rank"), [("folded", 8), ("separate", 16), ("widened", 8)])
def test_adapters_act_in_full_in_every_layout(
    base: ModelFolder, layout: str, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two as on a processor that multiplies bf16."""
    monkeypatch.setattr(products, "_cpu_multiplies_bf16", lambda: layout != "widened")
    hold_in_full(base, rank, LONG)


@pytest.mark.parametrize(
    "at", [pytest.param(SHORT, id="short"), pytest.param(LONG, id="hundred", marks=pytest.mark.long)]
)
def test_full_fine_tuning_acts_in_full(base: ModelFolder, at: tuple[int, ...]) -> None:
    found: list[tuple[str, int, Rounding, Fidelity]] = []
    for name, lr in RATES.items():
        lane = full(base, lr)
        trained = lane.trainable
        assert isinstance(trained, FullParameters)
        start = {key: master.clone() for key, master in trained.masters.items()}
        for step in range(1, max(at) + 1):
            train(lane)
            if step not in at:
                continue
            exact = [losses_in_fp32(base, weights) for weights in (start, trained.masters)]
            for rounding in ("stochastic", "nearest"):
                tested = [
                    losses_of_copies(lane.model, trained, weights, rounding) for weights in (start, trained.masters)
                ]
                fidelity = forward_fidelity(
                    before_fp32=exact[0], after_fp32=exact[1], before=tested[0], after=tested[1], tokens=TOKENS
                )
                found.append((name, step, rounding, fidelity))
            trained.publish("full", lane.optimizers["full"].updates)
    table = "\n".join(
        f"{name:>5} {step:>4} {rounding:>10}: {own}: {own.verdict}" for name, step, rounding, own in found
    )
    verdicts = Counter((rounding, own.verdict) for _, _, rounding, own in found)
    for _, _, rounding, own in found:
        if rounding == "stochastic":
            assert is_one_within_noise(own.estimate, own.low, own.high), table
    assert verdicts["stochastic", "passes"] >= 2 * len(at), table
    assert verdicts["nearest", "fails"] >= 4, table


def losses_in_fp32(base: ModelFolder, weights: Mapping[str, Tensor]) -> tuple[float, ...]:
    model = load_start(base, FullSpec(), device=CPU)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])
    return evaluate(CausalLM(model), DOCUMENTS, ("full",), BUDGET)["full"].by_example


def losses_of_copies(
    model: CausalLM, trained: FullParameters, weights: Mapping[str, Tensor], rounding: Rounding
) -> list[float]:
    """Mean over draws."""
    draws: list[tuple[float, ...]] = []
    for draw in range(DRAWS if rounding == "stochastic" else 1):
        trained.compute_with(weights, rounding=rounding, step=draw)
        draws.append(evaluate(model, DOCUMENTS, ("full",), BUDGET)["full"].by_example)
    return [sum(own) / len(draws) for own in zip(*draws, strict=True)]
