"""How much of a LoRA step is the matrix products that nobody can leave out, at the speed that this machine gives them?

    python benchmarks/gemm_share.py --data gsm8k/train.jsonl

In one process and in turn: steps of the engine, and the products that they need, each at its own shape and with the
rows that the step had: every linear layer of the base forward and for the gradient of its input at the rows of the
micro-batch, the unembedding likewise at the loss positions. Products of one shape are timed over several weight
matrices, as the layers of a model have. The adapters' own products are counted (`planner/flops.py`) and taken at the
speed that the base's products reached together; attention's are listed, and not part of the share. The share is the
products' time over the step's: 1 is an engine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beside.envelope import Answer, write_result
from beside.formats import best
from beside.ours import BUDGET, RANK, SLOT, examples_of, lane, optimizer_of, training_job
from beside.turns import give, in_process_of_its_own, median, need, parse, parser_of, say

SHORT = {"batch_size": 4, "steps": 5}
LR = 3e-4
COPIES = 4
"""Weight matrices that a product's timing goes through, so that none stays in the cache for the next."""
HEAD_CHUNK = 320
"""Rows of a product with the unembedding; more were no faster."""


def main() -> None:
    """Measure in a process of its own, and write the result."""
    started = time.perf_counter()
    parser = parser_of(__doc__, data="reasoning-gym:number_sorting", short=SHORT)
    parser.add_argument("--steps", type=int, default=7, help="steps, and measurements of every product (7)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences a step (8)")
    arguments = parse(parser, SHORT)
    if arguments.child:
        give(measure(arguments.child, json.loads(arguments.job.read_text())))
        return
    need(arguments.steps, arguments, "--steps")
    fastest, race = best(arguments, "lora")
    number_format = fastest["ours"]
    with tempfile.TemporaryDirectory() as scratch:
        job_file = Path(scratch) / "job.json"
        # Every turn takes the same batch: its shape is what the products are measured at.
        one = argparse.Namespace(**vars(arguments) | {"steps": 1})
        job_file.write_text(json.dumps(training_job(one, "lora", Path(scratch)) | {"turns": arguments.steps}))
        say(f"gemm_share: {arguments.steps} steps and as many passes over the products")
        command = [__file__, "--child", number_format, "--job", str(job_file)]
        raw = in_process_of_its_own(command, "gemm_share", threads=arguments.threads)
    medians = summed(raw)
    products, step = medians["products"]["seconds"], medians["step"]["seconds"]
    result = write_result(
        "gemm_share",
        arguments=arguments,
        question="What share of a LoRA step are its matrix products at the speed that this machine gives them?",
        rows=[
            {"contender": "step", "format": number_format, "measurements": len(raw["steps"])},
            {"contender": "products", "format": number_format, "measurements": len(raw["steps"])},
        ],
        medians=medians,
        answers={
            "gemm_share": Answer(
                ours=products,
                peer=step,
                unit="s a step",
                ours_was=f"its products alone, {number_format}",
                peer_was=f"a step of lowregret, {number_format}",
            )
        },
        checks={"rows": raw["rows"], "loss_positions": raw["positions"], "race_of_formats": race},
        raw=raw,
        started=started,
    )
    print(json.dumps({key: result[key] for key in ("answers", "medians")}, indent=1))


def summed(raw: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Medians of the parts, and the products' time."""
    base = median(raw["base_seconds"])
    speed = raw["base_multiply_adds"] / base
    adapters = raw["adapter_multiply_adds"] / speed
    return {
        "step": {"seconds": median(raw["steps"])},
        "products": {
            "seconds": base + adapters,
            "base_seconds": base,
            "adapter_seconds_at_that_speed": adapters,
            "gigaflops": 2 * speed / 1e9,
        },
        "attention": {"seconds_at_that_speed": raw["attention_multiply_adds"] / speed},
    }


def measure(number_format: str, job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of steps and of the products, in turn; and what was counted."""
    import torch

    from lowregret.data.packing import microbatches
    from lowregret.training.step import train_step

    torch.set_num_threads(job["threads"])
    slot = SLOT["lora"]
    model, bank = lane(job["model"], "lora", number_format)
    optimizers = {slot: optimizer_of(bank, slot, lr=LR)}
    batches = microbatches({slot: examples_of(job["rows"])}, BUDGET)
    rows = [sum(batch.segment_lengths) for batch in batches]
    positions = [int((batch.weights > 0).sum()) for batch in batches]
    counted, shapes = counts(Path(job["model"]), batches, rows, positions)
    products = products_of(shapes, rows, positions, model.dtype)
    steps: list[float] = []
    base: list[float] = []
    for turn in range(job["turns"] + 1):  # the first one warms up
        step = seconds_of(lambda: train_step(model, batches, optimizers, factor=1.0))
        passed = sum(number * seconds_of(product) for number, product in products)
        if turn:
            steps.append(step)
            base.append(passed)
    return {"steps": steps, "base_seconds": base, "rows": sum(rows), "positions": sum(positions), **counted}


Shapes = list[tuple[int, int, int, bool]]
"""Number of matrices, d_in, d_out, and whether it is the unembedding."""


def counts(folder: Path, batches: list[Any], rows: list[int], positions: list[int]) -> tuple[dict[str, float], Shapes]:
    """Multiply-adds of the batches by the planner's count, and the base's matrices."""
    from lowregret.planner.flops import flops
    from lowregret.planner.shapes import read_shape
    from lowregret.planner.targets import select

    shape = read_shape(folder)
    adapted = select(shape, ("all",), unembed=False)
    lengths = [length for batch in batches for length in batch.segment_lengths]
    mean = sum(n * n for n in lengths) / sum(lengths)
    plain = flops(shape, method="lora", adapted=adapted, rank=0, mean_length=mean)
    with_adapter = flops(shape, method="lora", adapted=adapted, rank=RANK, mean_length=mean)
    found = {
        "base_multiply_adds": plain.matrices * sum(rows) + plain.unembed * sum(positions),
        "adapter_multiply_adds": (with_adapter.matrices - plain.matrices) * sum(rows),
        "attention_multiply_adds": plain.attention * sum(rows),
    }
    return found, [(int(m.active_count), m.d_in, m.d_out, m.kind == "unembed") for m in shape.matrices]


def products_of(
    shapes: Shapes, rows: list[int], positions: list[int], dtype: Any
) -> list[tuple[float, Callable[[], object]]]:
    """Every different product of a step, with how often the step needs it over how often a call makes it."""
    import torch

    found: list[tuple[float, Callable[[], object]]] = []
    for number, d_in, d_out, head in shapes:
        copies = 1 if head else COPIES
        weights = [torch.randn(d_out, d_in).to(dtype) for _ in range(copies)]
        for height in chunks(positions) if head else rows:
            x, dy = torch.randn(height, d_in).to(dtype), torch.randn(height, d_out).to(dtype)
            found.append((number / copies, lambda x=x, weights=weights: [x @ weight.T for weight in weights]))
            found.append((number / copies, lambda dy=dy, weights=weights: [dy @ weight for weight in weights]))
    return found


def chunks(positions: list[int]) -> list[int]:
    """Rows of the unembedding's products."""
    return [min(HEAD_CHUNK, number - start) for number in positions for start in range(0, number, HEAD_CHUNK)]


def seconds_of(action: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
