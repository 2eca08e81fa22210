"""Peak memory of two bare training steps, one process a setting: the figures of `tests/planner/test_memory.py`.

    python benchmarks/peak.py --model smollm2-135m

`memory.py` measures whole runs against their plans; this measures the steps alone, at token counts that the test names.
Documents are random tokens of unequal lengths, 256 of them on average; 512 in the setting of rank 64.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

SETTINGS: tuple[tuple[int | None, str, int, bool], ...] = (
    (16, "fp32", 1024, False),
    (16, "fp32", 1024, True),
    (64, "fp32", 2048, False),
    (16, "bf16", 1024, False),
    (1, "bf16", 2048, False),
    (None, "fp32", 512, False),
    (None, "fp32", 1024, True),
    (None, "bf16", 512, False),
)
"""Rank (None: full fine-tuning), format, tokens of a micro-batch, activation checkpointing."""


def main() -> None:
    """Measure every setting in a process of its own and print its peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="base (smollm2-135m)")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        print(json.dumps(peak_mib(arguments.model, *SETTINGS[arguments.child])))
        return
    for index, (rank, dtype, tokens, checkpointing) in enumerate(SETTINGS):
        command = [sys.executable, __file__, "--model", arguments.model, "--child", str(index)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        print(
            "FullFT" if rank is None else f"r{rank}",
            dtype,
            tokens,
            checkpointing,
            f"{float(found):.0f} MiB",
            flush=True,
        )


def peak_mib(source: str, rank: int | None, dtype: str, tokens: int, checkpointing: bool) -> float:
    """Resident peak of this process after two steps, one thread."""
    import datasets  # noqa: F401  # what a run's process holds besides
    import matplotlib.pyplot  # noqa: F401
    import numpy as np
    import torch

    import lowregret.cli.sft
    import lowregret.training.sft  # noqa: F401
    from lowregret.batches import TokenizedExample
    from lowregret.data.packing import microbatches
    from lowregret.models.load import DTYPES, load_module, with_bank, with_full
    from lowregret.models.locate import locate_model
    from lowregret.specs import AdapterSpec, FullSpec, ModelSpec, OptimSpec
    from lowregret.training.optimizer import AdamW
    from lowregret.training.step import train_step

    torch.set_num_threads(1)
    module = load_module(locate_model(ModelSpec(source=source)), dtype=DTYPES[dtype], device=torch.device("cpu"))
    if rank is None:
        model, trainable = with_full(module, FullSpec(), slot="s")
    else:
        model, trainable = with_bank(module)
        trainable.join("s", AdapterSpec(rank=rank))
    model.use_activation_checkpointing(checkpointing)
    optimizers = {"s": AdamW(OptimSpec(lr=1e-4), trainable.blocks("s"))}
    rng, length = np.random.default_rng(0), 512 if rank == 64 else 256
    for _ in range(2):
        documents = [
            TokenizedExample(tokens=rng.integers(0, model.vocab_size, each), completion=np.arange(each) > 0)
            for each in unequal(tokens, length)
        ]
        train_step(model, microbatches({"s": documents}, tokens), optimizers, factor=1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def unequal(total: int, mean: int) -> list[int]:
    """Lengths that sum to `total` about a mean, the same every time.

    >>> unequal(1024, 256)
    [160, 352, 208, 304]
    """
    pairs = [(mean * 5 // 8, mean * 11 // 8), (mean * 13 // 16, mean * 19 // 16)]
    return [length for index in range(total // mean // 2) for length in pairs[index % 2]]


if __name__ == "__main__":
    main()
