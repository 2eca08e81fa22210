"""Where the time of a decoding step goes: by operation, and how fast its products read the weights.

    python benchmarks/decoding.py

Rows that continue short prompts with one adapter of rank 16, in ours' fastest number format. The product of an MLP
layer is timed over many weight matrices in turn (read from memory, as in decoding) and over one (from the cache),
beside a plain read of memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from beside.envelope import write_result
from beside.formats import best
from beside.turns import median, parse, parser_of

PROMPT, NEW_TOKENS, MATRICES, REPEATS = 8, 64, 150, 5


def main() -> None:
    """Measure and write the results."""
    import torch

    started = time.perf_counter()
    # Data is only for the race of number formats.
    parser = parser_of(__doc__, data="reasoning-gym:number_sorting", short={})
    parser.add_argument("--rows", type=int, default=16, help="completions side by side (16)")
    arguments = parse(parser, {})
    fastest, race = best(arguments, "lora")
    torch.set_num_threads(arguments.threads)
    step, shares = decoding(arguments.model, arguments.rows, fastest["ours"])
    read = reading(arguments.rows, fastest["ours"])
    medians = {
        "decoding": {
            "milliseconds_a_step": 1000 * step / NEW_TOKENS,
            "tokens_per_second": arguments.rows * NEW_TOKENS / step,
        },
        **{name: {"gigabytes_per_second": value} for name, value in read.items()},
    }
    write_result(
        "decoding",
        arguments=arguments,
        question="Where does the time of a decoding step go?",
        rows=[{"contender": name, "format": fastest["ours"], "measurements": REPEATS} for name in medians],
        medians=medians,
        answers={},
        checks={"share_of_processor_time": shares, "race_of_formats": race},
        raw={},
        started=started,
    )
    print(json.dumps({"medians": medians, "shares": shares}, indent=1))


def decoding(model_name: str, rows: int, number_format: str) -> tuple[float, dict[str, float]]:
    """Seconds of all steps, and the share of each kind of operation in the processor time."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from lowregret.models.load import DTYPES, load_module, with_bank
    from lowregret.models.locate import locate_model
    from lowregret.sampling.sampler import Request, Sampler
    from lowregret.specs import AdapterSpec, ModelSpec, SamplingSpec

    folder = locate_model(ModelSpec(source=model_name))
    model, bank = with_bank(load_module(folder, dtype=DTYPES[number_format], device=torch.device("cpu")))
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
    return seconds, {key: share for share, key in shares[:8]}


def reading(rows: int, number_format: str) -> dict[str, float]:
    """Gigabytes of weights a second that a product of an MLP layer takes in, and a plain read of memory beside it."""
    import torch

    from lowregret.models.load import DTYPES

    d_in, d_out, dtype = 576, 1536, DTYPES[number_format]
    weights = [torch.randn(d_out, d_in).to(dtype) for _ in range(MATRICES)]
    x = torch.randn(rows, d_in).to(dtype)
    size = weights[0].numel() * weights[0].element_size() * MATRICES / 1e9
    plain = torch.randn(100_000_000)
    return {
        "product, weights from memory": size / median_seconds(lambda: [x @ weight.T for weight in weights]),
        "product, weights from the cache": size / median_seconds(lambda: [x @ weights[0].T for _ in weights]),
        "plain read": plain.numel() * 4 / 1e9 / median_seconds(plain.sum),
    }


def median_seconds(action: Callable[[], object]) -> float:
    """Over five times, after one to warm up."""
    action()
    seconds: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


if __name__ == "__main__":
    main()
