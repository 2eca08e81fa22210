"""Forward fidelity of three bf16 arithmetics for the same trained adapter, on a real model.

    python benchmarks/fidelity.py --data gsm8k/train.jsonl --lr 3e-4 --sequences 24

The adapter is trained in the package's own arithmetic; after each of the steps asked for, its masters are evaluated in
fp32, in one accumulator (ours), as PEFT adds (both terms rounded, then summed) and by `addmm` onto the rounded base.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import torch
from beside.envelope import write_result
from beside.turns import parse, parser_of

from lowregret.batches import TokenizedExample
from lowregret.data.load import load_data
from lowregret.data.packing import microbatches
from lowregret.data.tokenizer import TextTokenizer
from lowregret.models.causal_lm import CausalLM
from lowregret.models.load import load_module, with_bank
from lowregret.models.locate import locate_model
from lowregret.specs import AdapterSpec, Arithmetic, DataSpec, ModelSpec, OptimSpec
from lowregret.training.evaluate import BASE, evaluate
from lowregret.training.measure import forward_fidelity
from lowregret.training.optimizer import AdamW
from lowregret.training.step import train_step

BUDGET = 2048


ARITHMETICS: dict[str, Arithmetic] = {
    "one accumulator": "accumulator",
    "bf16 add": "add",
    "addmm onto the rounded base": "addmm",
}


def main() -> None:
    """Train, and after each of the steps asked for compare the arithmetics."""
    started = time.perf_counter()
    parser = parser_of(__doc__, data="reasoning-gym:number_sorting", short={})
    parser.add_argument("--rank", type=int, default=16, help="of the adapter (16)")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate (3e-4)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 3], help="after which fidelity is measured (1 3)")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences a step (4)")
    parser.add_argument("--sequences", type=int, default=24, help="held-out sequences (24)")
    arguments = parse(parser, {})
    torch.set_num_threads(arguments.threads)
    folder = locate_model(ModelSpec(source=arguments.model))
    data = load_data(DataSpec(source=arguments.data, limit=2000), TextTokenizer.from_folder(folder.path))
    held_out = [example(data.validation[k]) for k in range(min(arguments.sequences, len(data.validation)))]
    lanes = {}
    for dtype in (torch.float32, torch.bfloat16):
        lanes[dtype] = with_bank(load_module(folder, dtype=dtype, device=torch.device("cpu")))
        lanes[dtype][1].join("s", AdapterSpec(rank=arguments.rank))
    (exact, exact_bank), (tested, bank) = lanes[torch.float32], lanes[torch.bfloat16]
    optimizers = {"s": AdamW(OptimSpec(lr=arguments.lr), bank.blocks("s"))}
    before_exact, rows = nlls(exact, held_out, BASE), []
    for step in range(1, max(arguments.steps) + 1):
        chosen = [
            example(data.train[(step * arguments.batch_size + k) % len(data.train)])
            for k in range(arguments.batch_size)
        ]
        train_step(tested, microbatches({"s": chosen}, BUDGET), optimizers, factor=1.0)
        if step not in arguments.steps:
            continue
        for mine, theirs in zip(exact_bank.blocks("s"), bank.blocks("s"), strict=True):
            mine.value.copy_(theirs.value)
        exact_bank.publish("s")
        after_exact = nlls(exact, held_out, "s")
        for name, arithmetic in ARITHMETICS.items():
            with bank.computing(arithmetic):
                before, after = nlls(tested, held_out, BASE), nlls(tested, held_out, "s")
            found = forward_fidelity(
                before_fp32=before_exact,
                after_fp32=after_exact,
                before=before,
                after=after,
                tokens=[document.num_completion_tokens for document in held_out],
            )
            rows.append(
                {"lr": arguments.lr, "step": step, "arithmetic": name, **asdict(found), "verdict": found.verdict}
            )
            print(json.dumps(rows[-1]), flush=True)
    medians = {f"{row['arithmetic']}, step {row['step']}": numbers_of(row) for row in rows}
    write_result(
        "fidelity",
        arguments=arguments,
        question="How much of an adapter's effect acts in three bf16 arithmetics?",
        rows=[{"contender": name, "format": "bf16", "measurements": arguments.sequences} for name in medians],
        medians=medians,
        answers={},
        checks={},
        raw=rows,
        started=started,
    )


def numbers_of(row: dict[str, Any]) -> dict[str, float]:
    """What of a row is a number."""
    return {key: float(value) for key, value in row.items() if isinstance(value, int | float) and key != "step"}


def example(row: tuple[Any, Any]) -> TokenizedExample:
    """A row of a store as a document."""
    return TokenizedExample(tokens=row[0], completion=row[1])


def nlls(model: CausalLM, documents: list[TokenizedExample], slot: str) -> tuple[float, ...]:
    """Summed NLL of each document."""
    return evaluate(model, documents, (slot,), BUDGET)[slot].by_example


if __name__ == "__main__":
    main()
