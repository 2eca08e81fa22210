"""Norms and kernels of an adapter, held against gradients that are formed in full."""

from __future__ import annotations

import math

import torch

from lowregret.adapters.routing import Routing
from lowregret.batches import TokenizedExample
from lowregret.data.packing import pack
from lowregret.specs import AdapterSpec
from lowregret.training.dynamics import dynamics_rows, kernel_match, mean_norm, traced
from tiny import bank_on, examples, tiny_llama


def test_the_kernel_is_that_of_the_gradients() -> None:
    """K_LoRA from each example's own gradient of B, K_full from its gradient of the base weights."""
    spec = AdapterSpec(rank=4)
    lm, bank = bank_on(tiny_llama(), {"r4": spec}, dtype=torch.float64)
    documents: list[TokenizedExample] = examples(3)
    traces = traced(lm, documents)
    names = list(bank.weights["r4"].a_of)
    own: list[dict[str, torch.Tensor]] = []
    for document in documents:
        alone = traced(lm, [document])
        own.append({name: alone[name].dy.T @ alone[name].x for name in names})
    lora = torch.zeros(3, 3, dtype=torch.float64)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            for name in names:
                a_RD = bank.weights["r4"].a_of[name].float()
                g, h = own[i][name], own[j][name]
                lora[i, j] += float((spec.scaling**2 * (g @ a_RD.T) * (h @ a_RD.T)).sum())
                expected[i, j] += float(spec.alpha**2 / (3 * spec.rank * g.shape[1]) * (g * h).sum())
    cosine, error = kernel_match(traces, bank.weights["r4"], [len(d.tokens) for d in documents])
    assert abs(cosine - float((lora * expected).sum() / lora.norm() / expected.norm())) < 1e-4
    assert abs(error - float((lora - expected).norm() / expected.norm())) < 1e-4


def test_traced_gradients_are_autograds() -> None:
    lm, bank = bank_on(tiny_llama(), {"r2": AdapterSpec(rank=2)})
    documents = examples(2)
    traces = traced(lm, documents)
    site = next(iter(bank.sites))
    batch = pack([("base", document) for document in documents])
    bump = torch.zeros(batch.tokens.numel(), bank.sites[site].out_features, requires_grad=True)

    def bumped(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        del module, inputs
        return output + bump.view_as(output)

    handle = bank.sites[site].register_forward_hook(bumped)
    with lm.routed(Routing.from_lengths({None: batch.tokens.numel()})):
        logits = lm.logits(lm.hidden(batch, module_by_module=True))
    handle.remove()
    losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    (losses * batch.weights).sum().backward()
    torch.testing.assert_close(traces[site].dy, bump.grad, rtol=1e-4, atol=1e-6)


def test_the_error_falls_as_one_over_the_root_of_the_rank_and_rows_say_it() -> None:
    """Over eight draws of A: from rank 1 to 16 by a factor of 4, to a factor of 1.5."""
    slots = {f"r{rank}-{seed}": AdapterSpec(rank=rank, init_seed=seed) for rank in (1, 16) for seed in range(8)}
    lm, bank = bank_on(tiny_llama(), slots)
    rows = {row.slot: row for row in dynamics_rows(lm, examples(6), 0)}
    errors = {rank: sum(rows[f"r{rank}-{seed}"].kernel_error or math.nan for seed in range(8)) for rank in (1, 16)}
    assert 4 / 1.5 < errors[1] / errors[16] < 4 * 1.5
    assert all(row.norm_b == 0.0 for row in rows.values())
    assert rows["r16-0"].norm_a == mean_norm(bank.weights["r16-0"].a_of.values())
    bank.weights["r1-0"].b.fill_(0.1)
    later = {row.slot: row for row in dynamics_rows(lm, examples(6), 5)}
    assert later["r1-0"].norm_b > 0
    assert later["r1-0"].kernel_alignment is None


def test_the_norm_is_the_largest_singular_value() -> None:
    one, two = torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([12.0, 5.0]))
    assert abs(mean_norm([one, two]) - 6.0) < 1e-9
