"""Generation with adapters beside `transformers`' `generate` with PEFT: same model, prompts and number of tokens.

    python benchmarks/sampling.py --data gsm8k/train.jsonl

Greedy, with stop tokens disabled, so that every arm makes `--new-tokens` tokens a row; reading the prompts is part of
the time. Arms take turns in one process, figures are medians over `--repeats` rounds. The peer has left padding, no
gradients, adapters in the base's number format, and both of its caches are tried. `merged` has the adapter in its
weights, which one adapter at a time can have. Questions: how fast is one adapter at each batch size; and eight adapters
with two rows each, in one batch or one after another? Greedy tokens of both sides are compared in fp32.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RANK, ALPHA = 16, 32.0
NUM_ADAPTERS, ROWS_EACH = 8, 2
B_SCALE = 0.01
"""Standard deviation of B: what an adapter adds is then a twentieth of its input, and text stays text."""
WARM_UP_TOKENS = 8

Arm = Callable[[int], list[list[int]]]
"""From the number of new tokens to the tokens of each row."""


def main() -> None:
    """Load both sides, let the arms take turns, compare tokens, sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="reasoning-gym:chain_sum", help="GSM8K's train.jsonl, or other questions")
    parser.add_argument("--batches", default="16,64", help="rows side by side with one adapter")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--checked", type=int, default=4, help="prompts whose tokens are compared in fp32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sampling.json"))
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    batches = [int(size) for size in arguments.batches.split(",")]
    path, prompts = prompts_of(arguments, max(*batches, NUM_ADAPTERS * ROWS_EACH, arguments.checked))
    with tempfile.TemporaryDirectory() as scratch:
        sides = Sides(path, arguments.dtype, Path(scratch))
        measured: dict[str, dict[str, list[float]]] = {}
        for size in batches:
            arms = one_adapter(sides, prompts[:size])
            measured[f"one adapter, {size} rows"] = in_turn(arms, size, arguments)
        rows = NUM_ADAPTERS * ROWS_EACH
        measured[f"{NUM_ADAPTERS} adapters, {rows} rows"] = in_turn(
            many_adapters(sides, prompts[:rows]), rows, arguments
        )
        del sides
        equal = share_of_equal_tokens(path, prompts[: arguments.checked], arguments.new_tokens, Path(scratch) / "fp32")
    summary = summarise(measured, equal, prompts, arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({key: summary[key] for key in ("tokens_per_second", "ratios", "greedy_in_fp32")}, indent=1))


def prompts_of(arguments: argparse.Namespace, number: int) -> tuple[Path, list[tuple[int, ...]]]:
    """The model's folder and the first prompts of the data, with the chat template."""
    from lowregret.data.problems import load_problems
    from lowregret.data.tokenizer import TextTokenizer
    from lowregret.models.locate import locate_model
    from lowregret.specs import DataSpec, ModelSpec, RewardSpec, RLSpec, SamplingSpec

    folder = locate_model(ModelSpec(source=arguments.model))
    sampling = SamplingSpec(max_new_tokens=arguments.new_tokens)
    rl = RLSpec(rewards=(RewardSpec(source="exact"),), sampling=sampling)
    spec = DataSpec(source=arguments.data, limit=4 * number)
    problems = load_problems(spec, rl, TextTokenizer.from_folder(folder.path)).train
    return folder.path, [problem.tokens for problem in problems[:number]]


class Sides:
    """One base with a bank, one with PEFT, one with the first adapter merged; the same adapters on all."""

    def __init__(self, path: Path, dtype: str, scratch: Path, *, number: int = NUM_ADAPTERS) -> None:
        import peft
        import torch

        from lowregret.adapters.peft_format import write_adapter
        from lowregret.models.load import DTYPES, load_module, with_bank
        from lowregret.models.locate import ModelFolder
        from lowregret.specs import AdapterSpec

        self.slots = [f"a{k}" for k in range(number)]
        folder = ModelFolder(path=path, name="benchmark", content_hash="")
        # The slots of a bank share every product; whoever samples with one adapter has a bank of one.
        banks = [with_bank(load_module(folder, dtype=DTYPES[dtype], device=torch.device("cpu"))) for _ in range(2)]
        (self.single, one), (self.bank, all_of_them) = banks
        for bank, slots in ((one, self.slots[:1]), (all_of_them, self.slots)):
            for seed, slot in enumerate(slots):
                bank.join(slot, AdapterSpec(rank=RANK, alpha=ALPHA, init_seed=seed))
                b = bank.weights[slot].b
                b.copy_(torch.randn(b.shape, generator=torch.Generator().manual_seed(seed)) * B_SCALE)
                bank.publish(slot)
        for slot in self.slots:
            write_adapter(all_of_them, slot, scratch / slot, base_model=str(path))
        self.peft = peft.PeftModel.from_pretrained(base_of(path, dtype), scratch / "a0", adapter_name="a0")
        for slot in self.slots[1:]:
            self.peft.load_adapter(scratch / slot, adapter_name=slot)
        for name, parameter in self.peft.named_parameters():
            if "lora_" in name:  # PEFT keeps them in fp32, which costs a conversion in every layer
                parameter.data = parameter.data.to(DTYPES[dtype])
        self.peft.eval()
        adapted = peft.PeftModel.from_pretrained(base_of(path, dtype), scratch / "a0")
        self.merged: Any = adapted.merge_and_unload().eval()  # pyright: ignore[reportCallIssue]


def base_of(path: Path, dtype: str) -> Any:
    """The model as transformers loads it, without anything that ends a completion."""
    import transformers

    from lowregret.models.load import DTYPES

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=DTYPES[dtype], attn_implementation="sdpa"
    )
    model.generation_config = transformers.GenerationConfig(eos_token_id=None, pad_token_id=0)
    return model


def one_adapter(sides: Sides, prompts: list[tuple[int, ...]]) -> dict[str, Arm]:
    """Every row has the first adapter."""

    def theirs(model: Any, **options: Any) -> Arm:
        return lambda number: generated(model, prompts, number, **options)

    sides.peft.set_adapter("a0")
    return {
        "ours": lambda number: sampled(sides.single, [("a0", prompt) for prompt in prompts], number),
        "peft": theirs(sides.peft),
        "peft, static cache": theirs(sides.peft, cache_implementation="static", disable_compile=True),
        "merged": theirs(sides.merged),
        "merged, static cache": theirs(sides.merged, cache_implementation="static", disable_compile=True),
    }


def many_adapters(sides: Sides, prompts: list[tuple[int, ...]]) -> dict[str, Arm]:
    """Two rows of each adapter."""
    owned = [(slot, prompts[k * ROWS_EACH : (k + 1) * ROWS_EACH]) for k, slot in enumerate(sides.slots)]
    pairs = [(slot, prompt) for slot, own in owned for prompt in own]

    def ours_in_turn(number: int) -> list[list[int]]:
        made: list[list[int]] = []
        for slot, own in owned:
            made += sampled(sides.bank, [(slot, prompt) for prompt in own], number)
        return made

    def peft_in_turn(number: int) -> list[list[int]]:
        made: list[list[int]] = []
        for slot, own in owned:
            sides.peft.set_adapter(slot)
            made += generated(sides.peft, own, number)
        return made

    return {
        "ours, one batch": lambda number: sampled(sides.bank, pairs, number),
        "ours, in turn": ours_in_turn,
        "peft, one batch": lambda number: generated(
            sides.peft, prompts, number, adapter_names=[slot for slot, _ in pairs]
        ),
        "peft, in turn": peft_in_turn,
    }


def sampled(model: Any, pairs: list[tuple[str, tuple[int, ...]]], number: int) -> list[list[int]]:
    """The package's sampler, all rows side by side."""
    from lowregret.sampling.sampler import Request, Sampler
    from lowregret.specs import SamplingSpec

    spec = SamplingSpec(temperature=0.0, max_new_tokens=number, rows=len(pairs))
    requests = [Request(slot=slot, prompt=prompt, seeds=(0,)) for slot, prompt in pairs]
    completions = Sampler(model, spec, stop_tokens=frozenset()).sample(requests)
    return [completion.tokens.tolist() for (completion,) in completions]


def generated(model: Any, prompts: list[tuple[int, ...]], number: int, **options: Any) -> list[list[int]]:
    """`generate`, prompts padded on the left."""
    import torch

    longest = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    with torch.no_grad():
        output = model.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=number, do_sample=False, **options
        )
    return output[:, longest:].tolist()


def in_turn(arms: dict[str, Arm], rows: int, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each arm and round."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm(min(WARM_UP_TOKENS, arguments.new_tokens))
    for turn in range(arguments.repeats):
        for name, arm in arms.items():
            started = time.perf_counter()
            made = arm(arguments.new_tokens)
            seconds[name].append(time.perf_counter() - started)
            assert [len(own) for own in made] == [arguments.new_tokens] * rows, name
            speed = rows * arguments.new_tokens / seconds[name][-1]
            print(f"round {turn + 1}, {rows} rows, {name}: {speed:.0f} tokens/s", file=sys.stderr, flush=True)
    return seconds


def share_of_equal_tokens(
    path: Path, prompts: list[tuple[int, ...]], number: int, scratch: Path
) -> dict[str, float | int]:
    """How many greedy tokens of one adapter are the same on both sides in fp32, where rounding rarely decides."""
    sides = Sides(path, "fp32", scratch, number=1)
    ours = sampled(sides.single, [("a0", prompt) for prompt in prompts], number)
    theirs = generated(sides.peft, prompts, number)
    same = [a == b for mine, other in zip(ours, theirs, strict=True) for a, b in zip(mine, other, strict=True)]
    whole = sum(mine == other for mine, other in zip(ours, theirs, strict=True))
    return {"share_of_tokens": sum(same) / len(same), "rows_equal": whole, "rows": len(prompts)}


def summarise(
    measured: dict[str, dict[str, list[float]]],
    equal: dict[str, float | int],
    prompts: list[tuple[int, ...]],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Medians, ratios to the fastest peer, the comparison of tokens, and where it ran."""
    speeds: dict[str, dict[str, float]] = {}
    ratios: dict[str, dict[str, Any]] = {}
    for setting, seconds in measured.items():
        tokens = int(setting.split()[-2]) * arguments.new_tokens
        speeds[setting] = own = {name: tokens / statistics.median(found) for name, found in seconds.items()}
        best = max((name for name in own if name.startswith("peft")), key=lambda name: own[name])
        first = next(iter(own))
        ratios[setting] = {"peer": best, "ours_over_peer": own[first] / own[best]}
        if merged := [speed for name, speed in own.items() if name.startswith("merged")]:
            ratios[setting]["ours_over_merged"] = own[first] / max(merged)
        for name in ("ours, in turn", "peft, in turn"):
            if name in own:
                ratios[setting][f"ours_over_{name.replace(', ', '_').replace(' ', '_')}"] = own[first] / own[name]
    return {
        "tokens_per_second": speeds,
        "ratios": ratios,
        "greedy_in_fp32": equal,
        "prompt_lengths": sorted(map(len, prompts)),
        "setting": {key: str(value) for key, value in vars(arguments).items() if key != "out"},
        "machine": {"processor": platform.processor() or platform.machine(), "threads": arguments.threads},
        "versions": {p: importlib.metadata.version(p) for p in ("torch", "transformers", "peft")},
        "raw": measured,
    }


if __name__ == "__main__":
    main()
