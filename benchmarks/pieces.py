"""Times of the pieces of a step, side by side: where a design decision rests on a measurement, this prints it.

    python benchmarks/pieces.py

Each row is the median of repeated calls in milliseconds. Alternatives take turns within one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from beside.envelope import write_result
from beside.turns import median, need, parse, parser_of

from lowregret.adapters.grouped import padded_columns
from lowregret.models.attention import packed_attention, packed_attention_reference
from lowregret.objectives.nll import nll_reference, nll_with_gradient

T, D, F, V = 1024, 576, 1536, 49152


def main() -> None:
    """Time every alternative and write the table."""
    started = time.perf_counter()
    parser = parser_of(__doc__, data="none", short={})
    parser.add_argument("--repeats", type=int, default=15, help="measurements of each alternative (15)")
    arguments = parse(parser, {})
    need(arguments.repeats, arguments, "--repeats")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    questions = {**products(), **losses(), **attentions()}
    medians: dict[str, dict[str, float]] = {}
    for name, alternatives in questions.items():
        found = race(alternatives, arguments.repeats)
        medians |= {f"{name}: {label}": {"milliseconds": value} for label, value in found.items()}
        print(name, {label: round(value, 2) for label, value in found.items()}, flush=True)
    write_result(
        "pieces",
        arguments=arguments,
        question="What do the alternatives for a step's pieces cost?",
        rows=[{"contender": name, "measurements": arguments.repeats} for name in medians],
        medians=medians,
        answers={},
        checks={},
        raw={},
        started=started,
    )


def race(alternatives: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, taken in turns."""
    seconds: dict[str, list[float]] = {label: [] for label in alternatives}
    for turn in range(repeats + 2):
        for label, call in alternatives.items():
            started = time.perf_counter()
            call()
            if turn >= 2:
                seconds[label].append(time.perf_counter() - started)
    return {label: 1e3 * median(values) for label, values in seconds.items()}


def products() -> dict[str, dict[str, Callable[[], object]]]:
    """The base product alone, in fp32, and folded with adapter columns, padded and not."""
    x, weight = torch.randn(T, D).bfloat16(), torch.randn(F, D).bfloat16()
    wide_x, wide_weight = x.float(), weight.float()
    found: dict[str, dict[str, Callable[[], object]]] = {
        "base product": {"bf16": lambda: x @ weight.T, "fp32": lambda: wide_x @ wide_weight.T}
    }
    for rank in (16, 73):
        alternatives: dict[str, Callable[[], object]] = {"base": lambda: x @ weight.T}
        for label, columns in (("exact", rank), ("padded", padded_columns(rank))):
            folded = torch.randn(F + columns, D + columns).bfloat16()
            xu = torch.randn(T, D + columns).bfloat16()
            view, copy = folded[:F], folded[:F].contiguous()
            alternatives[f"{label}, view"] = lambda xu=xu, view=view: xu @ view.T
            alternatives[f"{label}, copy"] = lambda xu=xu, copy=copy: xu @ copy.T
        found[f"folded product, {rank} columns"] = alternatives
    return found


def losses() -> dict[str, dict[str, Callable[[], object]]]:
    """Loss and gradient of one chunk of logits."""
    logits, targets, weights = torch.randn(320, V).bfloat16(), torch.randint(V, (320,)), torch.rand(320)
    return {
        "loss and its gradient, 320 positions": {
            "in place": lambda: nll_with_gradient(logits, targets, lambda losses: weights),
            "autograd": lambda: nll_reference(logits, targets, weights),
            "logsumexp alone": lambda: torch.logsumexp(logits.float(), -1),
        }
    }


def attentions() -> dict[str, dict[str, Callable[[], object]]]:
    """Forward and backward of packed attention, fused kernel against plain softmax."""
    found: dict[str, dict[str, Callable[[], object]]] = {}
    for length in (64, 200, 800):
        q, k, v = (torch.randn(heads, length, 64).bfloat16().requires_grad_() for heads in (9, 3, 3))
        dy = torch.randn(9, length, 64).bfloat16()

        def call(kernel: Callable[..., torch.Tensor], q=q, k=k, v=v, dy=dy, length=length) -> object:
            return torch.autograd.grad(kernel(q, k, v, (length,), 0.125), (q, k, v), dy)

        found[f"attention forward and backward, {length} tokens"] = {
            "fused": lambda call=call: call(packed_attention),
            "plain": lambda call=call: call(packed_attention_reference),
        }
    return found


if __name__ == "__main__":
    main()
