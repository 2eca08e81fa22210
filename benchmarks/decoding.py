"""Where the time of a decoding step goes: by operation, and how fast its products read the weights.

    python benchmarks/decoding.py

Rows that continue short prompts with one adapter of rank 16, bf16. The product of an MLP layer is timed over many
weight matrices in turn (read from memory, as in decoding) and over one (from the cache), beside a plain read of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROMPT, NEW_TOKENS, MATRICES, REPEATS = 8, 64, 150, 5


def main() -> None:
    """Measure and write the results."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decoding.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    summary = {
        **decoding(arguments.model, arguments.rows),
        **reading(arguments.rows),
        "setting": {"model": arguments.model, "rows": arguments.rows, "new_tokens": NEW_TOKENS},
        "machine": {"processor": platform.processor() or platform.machine(), "threads": arguments.threads},
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


def decoding(model_name: str, rows: int) -> dict[str, Any]:
    """Milliseconds a step, and the share of each kind of operation in the processor time."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from lowregret.models.load import load_module, with_bank
    from lowregret.models.locate import locate_model
    from lowregret.sampling.sampler import Request, Sampler
    from lowregret.specs import AdapterSpec, ModelSpec, SamplingSpec

    folder = locate_model(ModelSpec(source=model_name))
    model, bank = with_bank(load_module(folder, dtype=torch.bfloat16, device=torch.device("cpu")))
    bank.join("r16", AdapterSpec(rank=16))
    bank.weights["r16"].b.normal_(0, 0.01)
    bank.publish("r16")
    spec = SamplingSpec(temperature=0.0, max_new_tokens=NEW_TOKENS, rows=rows)
    sampler = Sampler(model, spec, stop_tokens=frozenset())
    requests = [Request(slot="r16", prompt=tuple(range(100, 100 + PROMPT)), seeds=(seed,)) for seed in range(rows)]
    sampler.sample(requests)
    seconds = median_seconds(lambda: sampler.sample(requests))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        sampler.sample(requests)
    events = profiled.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares = sorted(((event.self_cpu_time_total / total, event.key) for event in events), reverse=True)
    return {
        "milliseconds_a_step": 1000 * seconds / NEW_TOKENS,
        "tokens_per_second": rows * NEW_TOKENS / seconds,
        "share_of_processor_time": {key: share for share, key in shares[:8]},
    }


def reading(rows: int) -> dict[str, Any]:
    """Gigabytes of weights a second that a product of an MLP layer takes in, and a plain read of memory beside it."""
    import torch

    d_in, d_out = 576, 1536
    weights = [torch.randn(d_out, d_in).bfloat16() for _ in range(MATRICES)]
    x = torch.randn(rows, d_in).bfloat16()
    size = weights[0].numel() * 2 * MATRICES / 1e9
    plain = torch.randn(100_000_000)
    return {
        "gigabytes_per_second": {
            "product, weights from memory": size / median_seconds(lambda: [x @ weight.T for weight in weights]),
            "product, weights from the cache": size / median_seconds(lambda: [x @ weights[0].T for _ in weights]),
            "plain read": plain.numel() * 4 / 1e9 / median_seconds(plain.sum),
        }
    }


def median_seconds(action: Callable[[], object]) -> float:
    """Over five times, after one to warm up."""
    action()
    seconds: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
