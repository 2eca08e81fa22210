"""How an adapter moves: spectral norms of A and B, and its tangent kernel beside full fine-tuning's (science.md, C11).

At B = 0 a step on B alone moves the outputs of two examples together by K_LoRA(i, j), the sum over matrices of
s^2 <G_i A^T, G_j A^T>, where G_i is the gradient of example i's loss to the matrix; full fine-tuning does so by the sum
of <G_i, G_j>. Over random A the first is alpha^2 / (3 r d_in) times the second in each matrix, with a relative error of
about 1/sqrt(r) (science.md, section 2). All gradients enter through products of inputs and output gradients of single
tokens, so that no G is ever formed.
Suffixes: N examples, T tokens, D in, F out, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowregret.adapters.bank import AdapterBank, SlotWeights
from lowregret.adapters.routing import Routing
from lowregret.batches import TokenizedExample
from lowregret.data.packing import pack
from lowregret.models.causal_lm import CausalLM
from lowregret.objectives.nll import nll_with_gradient
from lowregret.store.rows import DynamicsRow

KERNEL_EXAMPLES = 16
"""Held-out examples whose kernel is measured: 136 different entries."""
BASE = "base"


@dataclass(frozen=True, kw_only=True)
class SiteTrace:
    """What one adapted matrix saw of some examples: inputs and gradients of outputs, fp32.

    >>> SiteTrace(x=torch.zeros(3, 2), dy=torch.zeros(3, 4)).x.shape
    torch.Size([3, 2])
    """

    x: Float[Tensor, "T D"]
    dy: Float[Tensor, "T F"]


def dynamics_rows(model: CausalLM, examples: Sequence[TokenizedExample], step: int) -> list[DynamicsRow]:
    """One row for each live slot of a bank; before training also the kernel over the first examples."""
    bank = model.trainable
    assert isinstance(bank, AdapterBank)
    traces = traced(model, examples[:KERNEL_EXAMPLES]) if step == 0 else {}
    lengths = [len(example.tokens) for example in examples[:KERNEL_EXAMPLES]]
    rows: list[DynamicsRow] = []
    for slot in bank.slots:
        weights = bank.weights[slot]
        alignment, error = kernel_match(traces, weights, lengths) if traces else (None, None)
        rows.append(
            DynamicsRow(
                step=step,
                slot=slot,
                norm_a=mean_norm(weights.a_of.values()),
                norm_b=mean_norm(weights.b_of.values()),
                kernel_alignment=alignment,
                kernel_error=error,
            )
        )
    return rows


def mean_norm(matrices: Iterable[Tensor]) -> float:
    """Geometric mean of the matrices' largest singular values; 0 where one of them is zero."""
    norms = [float(torch.linalg.matrix_norm(matrix.double(), 2)) for matrix in matrices]
    return math.exp(sum(map(math.log, norms)) / len(norms)) if all(norms) else 0.0


def traced(model: CausalLM, examples: Sequence[TokenizedExample]) -> dict[str, SiteTrace]:
    """Inputs and output gradients of every adapted matrix, for the summed loss of each example on the base."""
    bank = model.trainable
    assert isinstance(bank, AdapterBank)
    batch = pack([(BASE, example) for example in examples]).to(model.device)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [layer.register_forward_hook(_recorder(name, seen)) for name, layer in bank.sites.items()]
    try:
        with model.routed(Routing.from_lengths({None: batch.tokens.numel()})):
            hidden_TD = model.hidden(batch, module_by_module=True)
            logits_TV = model.logits(hidden_TD)
            _, grad_TV = nll_with_gradient(logits_TV.detach().clone(), batch.targets, lambda losses: batch.weights)
            outputs = [output for _, output in seen.values()]
            grads = torch.autograd.grad(logits_TV, outputs, grad_TV)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: SiteTrace(x=_rows(x).float(), dy=_rows(grad).float())
        for (name, (x, _)), grad in zip(seen.items(), grads, strict=True)
    }


def kernel_match(traces: dict[str, SiteTrace], weights: SlotWeights, lengths: Sequence[int]) -> tuple[float, float]:
    """Cosine and relative error of K_LoRA against its expectation over A, over pairs of examples.

    Args:
        traces: of `traced`.
        weights: the adapter, with B zero.
        lengths: tokens of each example.
    """
    lora: Tensor | float = 0.0
    expected: Tensor | float = 0.0
    alpha, rank = weights.spec.alpha, weights.spec.rank
    for site, a_RD in weights.a_of.items():
        trace = traces[site]
        pairs_TT = trace.dy @ trace.dy.T
        u_TR = trace.x @ a_RD.to(trace.x.dtype).T
        scale = (alpha / rank) ** 2
        lora = lora + scale * _by_example(pairs_TT * (u_TR @ u_TR.T), lengths)
        mean = alpha**2 * weights.spec.init_scale**2 / (3 * rank * trace.x.shape[1])
        expected = expected + mean * _by_example(pairs_TT * (trace.x @ trace.x.T), lengths)
    assert isinstance(lora, Tensor)
    assert isinstance(expected, Tensor)
    cosine = (lora * expected).sum() / (lora.norm() * expected.norm())
    return float(cosine), float((lora - expected).norm() / expected.norm())


def _by_example(products_TT: Tensor, lengths: Sequence[int]) -> Float[Tensor, "N N"]:
    """Sums over the tokens of each pair of examples, fp64."""
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(products_TT.device)
    by_row = products_TT.new_zeros(len(lengths), products_TT.shape[1], dtype=torch.float64)
    by_row.index_add_(0, ids, products_TT.double())
    sums = torch.zeros_like(by_row[:, : len(lengths)])
    return sums.index_add_(1, ids, by_row)


def _recorder(
    name: str, seen: dict[str, tuple[Tensor, Tensor]]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del module
        seen[name] = (inputs[0].detach(), output)

    return record


def _rows(values: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1])
