"""In bf16 a trained update acts fully, by the definition of science.md; and the usual arithmetic fails the same test.

Each arm is compared with an fp32 model that has the same masters. The control arms show that the test can fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowregret.adapters.layer
import lowregret.adapters.thin
from lowregret.adapters.full import stochastic_bf16
from lowregret.adapters.grouped import grouped_linear
from lowregret.adapters.peft_format import StoredAdapter
from lowregret.export.merge import Rounding, merge
from lowregret.models.causal_lm import CausalLM
from lowregret.models.load import cast_parameters, with_full
from lowregret.specs import AdapterSpec, FullSpec, OptimSpec
from lowregret.training.evaluate import BASE, evaluate
from lowregret.training.measure import Fidelity, forward_fidelity
from lowregret.training.optimizer import AdamW
from lowregret.training.step import train_step
from tiny import bank_on, examples, optimizers, packed, tiny_llama

DOCUMENTS = examples(320, seed=1, shortest=24, longest=40)
TOKENS = [document.num_completion_tokens for document in DOCUMENTS]
BUDGET = 8192
DRAWS = 8


def base(width: int = 128) -> nn.Module:
    """Weights that sit on the bf16 grid, as those of a pretrained model do."""
    model = tiny_llama(width=width)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return model


def by_example(model: CausalLM, slot: str) -> tuple[float, ...]:
    return evaluate(model, DOCUMENTS, (slot,), BUDGET)[slot].by_example


def trained_adapter(*, steps: int = 1, lr: float = 3e-4, width: int = 128) -> tuple[CausalLM, CausalLM, StoredAdapter]:
    """The same adapter after some bf16 steps at a small LR, on an fp32 and on a bf16 base."""
    spec = {"s": AdapterSpec(rank=8)}
    exact, exact_bank = bank_on(base(width), spec)
    tested, tested_bank = bank_on(base(width), spec, dtype=torch.bfloat16)
    optimizer = optimizers(tested_bank, {"s": OptimSpec(lr=lr)})
    for _ in range(steps):
        train_step(tested, [packed({"s": DOCUMENTS})], optimizer, factor=1.0)
    for mine, theirs in zip(exact_bank.blocks("s"), tested_bank.blocks("s"), strict=True):
        mine.value.copy_(theirs.value)
    exact_bank.publish("s")
    weights = exact_bank.weights["s"]
    return exact, tested, StoredAdapter(rank=8, alpha=32.0, a_of=weights.a_of, b_of=weights.b_of)


def fidelity(exact: CausalLM, before: tuple[float, ...], after: tuple[float, ...]) -> Fidelity:
    return forward_fidelity(
        before_fp32=by_example(exact, BASE),
        after_fp32=by_example(exact, "s"),
        before=before,
        after=after,
        tokens=TOKENS,
    )


def test_an_adapter_acts_fully_in_bf16_and_the_usual_sum_swallows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, tested, _ = trained_adapter()
    faithful = fidelity(exact, by_example(tested, BASE), by_example(tested, "s"))
    assert faithful.verdict == "passes", faithful

    def usual(
        x_TD: Tensor, folded: Tensor, spans: Any, columns: Any, d_out: int, room: Any = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """PEFT's arithmetic: the base is rounded to bf16, then the adapter's share is added and rounded again."""
        _, us = grouped_linear(x_TD, folded, spans, columns, d_out)
        d_in = x_TD.shape[1]
        y_TF = x_TD @ folded[:d_out, :d_in].T
        for span, u in zip(spans, us, strict=True):
            if span.slot in columns:
                at = columns[span.slot]
                y_TF[span.start : span.stop] += u @ folded[:d_out, d_in + at.start : d_in + at.stop].T
        return y_TF, us

    monkeypatch.setattr(lowregret.adapters.layer, "grouped_linear", usual)
    # A processor without bf16 products would go by the stacked kernel, one that has them by that for all slots at once.
    monkeypatch.setattr(lowregret.adapters.layer.AdaptedLinear, "stacks_wide", False)
    monkeypatch.setattr(lowregret.adapters.thin, "serves", lambda *_: False)
    swallowed = fidelity(exact, by_example(tested, BASE), by_example(tested, "s"))
    assert swallowed.verdict == "fails", swallowed
    assert swallowed.high < 0.9, swallowed


@pytest.mark.parametrize(("rounding", "verdict"), [("stochastic", "passes"), ("nearest", "fails")])
def test_full_fine_tuning_acts_in_its_bf16_copy_when_rounded_stochastically(rounding: Rounding, verdict: str) -> None:
    exact, exact_full = with_full(base(), FullSpec())
    start = by_example(exact, "full")
    masters = {name: p.detach().clone() for name, p in exact.model.named_parameters()}
    tested, full = with_full(cast_parameters(base(), torch.bfloat16), FullSpec(rounding=rounding), masters=masters)
    before = by_example(tested, "full")
    optimizer = {"full": AdamW(OptimSpec(lr=2e-4), full.blocks("full"))}
    train_step(tested, [packed({"full": DOCUMENTS})], optimizer, factor=1.0)
    for name, master in exact_full.masters.items():
        master.copy_(full.masters[name])
    # A copy of so few weights is noisy in one draw (0.0003 nats), which the bootstrap over sequences does not see.
    draws: list[tuple[float, ...]] = []
    for draw in range(DRAWS):
        full.publish("full", draw)
        draws.append(by_example(tested, "full"))
    found = forward_fidelity(
        before_fp32=start,
        after_fp32=by_example(exact, "full"),
        before=before,
        after=[sum(losses) / DRAWS for losses in zip(*draws, strict=True)],
        tokens=TOKENS,
    )
    assert found.verdict == verdict, found


@pytest.mark.parametrize(("rounding", "verdict"), [("stochastic", "passes"), ("nearest", "fails")])
def test_a_bf16_merge_keeps_the_update_when_rounded_stochastically(rounding: Rounding, verdict: str) -> None:
    exact, tested, stored = trained_adapter(steps=4, lr=1e-4, width=256)
    # Stochastic rounding has a noise of its own in each draw, which the bootstrap over sequences does not see.
    draws: list[tuple[float, ...]] = []
    shares: list[float] = []
    for seed in range(DRAWS if rounding == "stochastic" else 1):
        merged = base(256)
        shares.append(merge(merged, stored, dtype=torch.bfloat16, rounding=rounding, seed=seed).share_of_update)
        draws.append(by_example(CausalLM(merged), BASE))
    after = tuple(sum(own) / len(draws) for own in zip(*draws, strict=True))
    found = fidelity(exact, by_example(tested, BASE), after)
    assert found.verdict == verdict, found
    assert all((abs(share - 1) < 0.05) == (rounding == "stochastic") for share in shares), shares


def test_stochastic_rounding_is_exact_on_average_and_on_the_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.tensor([1.0 + 2**-10, -3.0 - 2**-9, 2.0, 0.0, float("inf")])
    draws = torch.stack([stochastic_bf16(value, generator).double() for _ in range(20_000)])
    mean, width = draws[:, :3].mean(0), torch.tensor([2**-7, 2**-6, 0.0], dtype=torch.float64)
    standard_error = 0.5 * width / 20_000**0.5
    assert ((mean - value[:3]).abs() <= 5 * standard_error).all()
    assert (draws[:, 3] == 0).all()
    assert torch.isinf(draws[:, 4]).all()
    assert sorted(draws[:, 0].unique().tolist()) == [1.0, 1.0 + 2**-7]


@pytest.mark.parametrize("share", [0.125, 0.5, 0.875])
def test_stochastic_rounding_is_exact_wherever_a_number_stands(share: float) -> None:
    """Four numbers share a word of random bits, and each has to get as many as the others."""
    number, draws = 1.0 + share * 2**-7, 20_000
    rounded = stochastic_bf16(torch.full((draws, 8), number), torch.Generator().manual_seed(1)).double()
    standard_error = (share * (1 - share) / draws) ** 0.5
    assert (((rounded.mean(0) - 1.0) / 2**-7 - share).abs() <= 5 * standard_error).all()


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Fidelity(estimate=0.99, low=0.96, high=1.02, fp32_drop=1.0), "passes"),
        (Fidelity(estimate=1.01, low=0.90, high=1.12, fp32_drop=1.0), "passes"),
        (Fidelity(estimate=0.97, low=0.90, high=1.04, fp32_drop=1.0), "not resolved"),
        (Fidelity(estimate=0.97, low=0.94, high=1.005, fp32_drop=1.0), "fails"),
        (Fidelity(estimate=0.44, low=0.40, high=0.48, fp32_drop=1.0), "fails"),
    ],
)
def test_the_rule_for_fidelity(found: Fidelity, verdict: str) -> None:
    assert found.verdict == verdict


def test_the_interval_covers_a_known_ratio() -> None:
    """Simulated sequences with a true ratio of 0.8: 95 % intervals hold it in about 95 of 100 draws."""
    make: Callable[[int], torch.Generator] = lambda seed: torch.Generator().manual_seed(seed)  # noqa: E731
    covered = 0
    for seed in range(100):
        generator = make(seed)
        drop = 1 + torch.rand(60, generator=generator)
        tested = 0.8 * drop + 0.3 * torch.randn(60, generator=generator)
        zero = [0.0] * 60
        found = forward_fidelity(
            before_fp32=drop.tolist(), after_fp32=zero, before=tested.tolist(), after=zero, tokens=[10] * 60, seed=seed
        )
        covered += found.low <= 0.8 <= found.high
    assert 88 <= covered <= 100
