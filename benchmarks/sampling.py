"""Generation with adapters beside `transformers`' `generate` with PEFT: same model, prompts and number of tokens.

    python benchmarks/sampling.py --data gsm8k/train.jsonl

Greedy, with stop tokens disabled, so that every arm makes `--new-tokens` tokens a row; reading the prompts is part of
the time. Arms take turns in one process, figures are medians over `--repeats` rounds. The peer has left padding, no
gradients, adapters in the base's number format, and both of its caches are tried. `merged` has the adapter in its
weights, which one adapter at a time can have: it is listed, and not the peer. A short race chooses the number format of
either side. Questions: how fast is one adapter at each batch size; and eight adapters with two rows each, in one batch
or one after another (the faster of ours and PEFT)? Greedy tokens of both sides are compared in fp32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from beside.envelope import Answer, write_result
from beside.ours import base_module, randomise_b
from beside.turns import median, need, parse, parser_of, say, take_turns

SHORT = {"new_tokens": 16, "prompt_tokens": 16, "all_arms": 0, "raced_tokens": 8}
RACED_ROWS = 4
RANK, ALPHA = 16, 32.0
NUM_ADAPTERS, ROWS_EACH = 8, 2
WARM_UP_TOKENS = 4
GOAL_TOKENS = 128
FORMATS = ("fp32", "bf16")

Arm = Callable[[int], list[list[int]]]
"""From the number of new tokens to the tokens of each row."""


def main(name: str = "sampling", doc: str | None = __doc__, **defaults: int) -> None:
    """Race the formats, let the arms take turns, compare tokens, sum up.

    Args:
        name: of the result.
        defaults: of the options, where they are not those below.
    """
    started = time.perf_counter()
    parser = parser_of(doc, data="reasoning-gym:gsm_symbolic", short=SHORT)
    parser.add_argument("--batches", default="16,64", help="rows side by side with one adapter (16,64)")
    parser.add_argument("--new-tokens", type=int, default=128, help="of every row (128)")
    parser.add_argument("--prompt-tokens", type=int, default=0, help="keep only the last of each prompt (0: all)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (5)")
    parser.add_argument("--checked", type=int, default=4, help="prompts whose tokens are compared in fp32 (4)")
    parser.add_argument("--many", type=int, default=1, help="also eight adapters with two rows each (1)")
    parser.add_argument("--all-arms", type=int, default=1, help="also the peer's static cache, and merged weights (1)")
    parser.add_argument("--raced-tokens", type=int, default=8, help="tokens that the race of formats makes (8)")
    parser.set_defaults(**defaults)
    arguments = parse(parser, SHORT)
    need(arguments.repeats, arguments, "--repeats")

    import torch

    torch.set_num_threads(arguments.threads)
    batches = [int(size) for size in arguments.batches.split(",")]
    path, prompts = prompts_of(arguments, max(*batches, NUM_ADAPTERS * ROWS_EACH, arguments.checked))
    with tempfile.TemporaryDirectory() as scratch:
        race = {
            number_format: raced(path, number_format, prompts[:RACED_ROWS], arguments, Path(scratch))
            for number_format in FORMATS
        }
        formats = {side: max(FORMATS, key=lambda f: race[f][side]) for side in ("ours", "peft")}
        say(f"sampling: fastest formats {formats}")
        # Tokens in fp32 are compared whatever is fastest.
        equal = share_of_equal_tokens(path, prompts[: arguments.checked], arguments.new_tokens, Path(scratch) / "fp32")
        sides = Sides(path, formats, Path(scratch) / "timed", merge=bool(arguments.all_arms))
        measured: dict[str, dict[str, list[float]]] = {}
        for size in batches:
            arms = one_adapter(sides, prompts[:size], static=bool(arguments.all_arms))
            measured[f"one adapter, {size} rows"] = in_turn(arms, size, arguments)
        if arguments.many:
            rows = NUM_ADAPTERS * ROWS_EACH
            arms = many_adapters(sides, prompts[:rows], mixed=bool(arguments.all_arms))
            measured[f"{NUM_ADAPTERS} adapters, {rows} rows"] = in_turn(arms, rows, arguments)
    medians = {
        f"{setting}: {name}": {
            "tokens_per_second": rows_of(setting) * arguments.new_tokens / median(own),
            "seconds": median(own),
        }
        for setting, arms in measured.items()
        for name, own in arms.items()
    }
    result = write_result(
        name,
        arguments=arguments,
        question="How fast are completions sampled, with one adapter and with eight?",
        rows=[
            {
                "contender": f"{setting}: {name}",
                "format": formats["ours" if name.startswith("ours") else "peft"],
                "measurements": len(own),
            }
            for setting, arms in measured.items()
            for name, own in arms.items()
        ],
        medians=medians,
        answers=answers(medians, formats, batches, arguments.new_tokens),
        checks={"greedy_tokens_in_fp32": equal, "race_of_formats_tokens_per_second": race}
        | {"prompt_lengths": sorted(map(len, prompts))},
        raw=measured,
        started=started,
    )
    print(json.dumps({key: result[key] for key in ("answers", "medians")}, indent=1))


def rows_of(setting: str) -> int:
    """Completions of a setting such as `one adapter, 16 rows`."""
    return int(setting.split()[-2])


def answers(
    medians: Mapping[str, Mapping[str, float]], formats: Mapping[str, str], batches: list[int], new_tokens: int
) -> dict[str, Answer]:
    """Ours over the fastest peer at each size, and eight adapters over one after another."""

    def of(setting: str, ours: str, peers: Callable[[str], bool]) -> Answer:
        own = {name.partition(": ")[2]: found for name, found in medians.items() if name.startswith(f"{setting}: ")}
        best = max(filter(peers, own), key=lambda name: own[name]["tokens_per_second"])
        speeds = own[ours]["tokens_per_second"], own[best]["tokens_per_second"]
        side = "ours" if best.startswith("ours") else "peft"
        return Answer(
            ours=speeds[0],
            peer=speeds[1],
            unit="tokens/s",
            ours_was=f"lowregret{ours.removeprefix('ours')}, {formats['ours']}",
            peer_was=f"{best.replace('ours', 'lowregret').replace('peft', 'generate + PEFT')}, {formats[side]}",
        )

    # The goals are set for so many new tokens; fewer answer another question.
    few = "" if new_tokens >= GOAL_TOKENS else f"_{new_tokens}_tokens"
    found = {
        f"sample{size}{few}": of(f"one adapter, {size} rows", "ours", lambda n: n.startswith("peft"))
        for size in batches
    }
    many = f"{NUM_ADAPTERS} adapters, {NUM_ADAPTERS * ROWS_EACH} rows"
    if any(name.startswith(many) for name in medians):
        found["bank8_sample"] = of(many, "ours, one batch", lambda name: name.endswith("in turn"))
    return found


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
    # The last tokens of a prompt are all of them where none are asked for: [-0:] is everything.
    return folder.path, [problem.tokens[-arguments.prompt_tokens :] for problem in problems[:number]]


class Sides:
    """One base with a bank, one with PEFT, one with the first adapter merged; the same adapters on all."""

    def __init__(
        self, path: Path, formats: Mapping[str, str], scratch: Path, *, number: int = NUM_ADAPTERS, merge: bool = True
    ) -> None:
        import peft

        from lowregret.adapters.peft_format import write_adapter
        from lowregret.models.load import DTYPES, with_bank
        from lowregret.specs import AdapterSpec

        self.slots = [f"a{k}" for k in range(number)]
        # The slots of a bank share every product; whoever samples with one adapter has a bank of one.
        banks = [with_bank(base_module(str(path), formats["ours"])) for _ in range(2)]
        (self.single, one), (self.bank, all_of_them) = banks
        for bank, slots in ((one, self.slots[:1]), (all_of_them, self.slots)):
            for seed, slot in enumerate(slots):
                bank.join(slot, AdapterSpec(rank=RANK, alpha=ALPHA, init_seed=seed))
                randomise_b(bank, slot, seed=seed)
        for slot in self.slots:
            write_adapter(all_of_them, slot, scratch / slot, base_model="benchmark")
        dtype = DTYPES[formats["peft"]]
        self.peft = peft.PeftModel.from_pretrained(base_of(path, dtype), scratch / "a0", adapter_name="a0")
        for slot in self.slots[1:]:
            self.peft.load_adapter(scratch / slot, adapter_name=slot)
        for name, parameter in self.peft.named_parameters():
            if "lora_" in name:  # PEFT keeps them in fp32, which costs a conversion in every layer
                parameter.data = parameter.data.to(dtype)
        self.peft.eval()
        self.merged: Any = None
        if merge:
            adapted = peft.PeftModel.from_pretrained(base_of(path, dtype), scratch / "a0")
            self.merged = adapted.merge_and_unload().eval()  # pyright: ignore[reportCallIssue]


def base_of(path: Path, dtype: Any) -> Any:
    """The model as transformers loads it, without anything that ends a completion."""
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    model.generation_config = transformers.GenerationConfig(eos_token_id=None, pad_token_id=0)
    return model


def raced(
    path: Path, number_format: str, prompts: list[tuple[int, ...]], arguments: argparse.Namespace, scratch: Path
) -> dict[str, float]:
    """Tokens a second of either side in a format, one short batch after one to warm up."""
    formats = {"ours": number_format, "peft": number_format}
    sides = Sides(path, formats, scratch / f"race-{number_format}", number=1, merge=False)
    found: dict[str, float] = {}
    for side, arm in {"ours": one_adapter(sides, prompts)["ours"], "peft": one_adapter(sides, prompts)["peft"]}.items():
        arm(1)
        began = time.perf_counter()
        arm(arguments.raced_tokens)
        found[side] = len(prompts) * arguments.raced_tokens / (time.perf_counter() - began)
        say(f"sampling: race of formats, {side} in {number_format}: {found[side]:.0f} tokens/s")
    return found


def one_adapter(sides: Sides, prompts: list[tuple[int, ...]], *, static: bool = False) -> dict[str, Arm]:
    """Every row has the first adapter."""

    def theirs(model: Any, **options: Any) -> Arm:
        return lambda number: generated(model, prompts, number, **options)

    sides.peft.set_adapter("a0")
    arms: dict[str, Arm] = {
        "ours": lambda number: sampled(sides.single, [("a0", prompt) for prompt in prompts], number),
        "peft": theirs(sides.peft),
    }
    fixed: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True}
    if static:
        arms["peft, static cache"] = theirs(sides.peft, **fixed)
    if sides.merged is not None:
        arms["merged"] = theirs(sides.merged)
    if static and sides.merged is not None:
        arms["merged, static cache"] = theirs(sides.merged, **fixed)
    return arms


def many_adapters(sides: Sides, prompts: list[tuple[int, ...]], *, mixed: bool) -> dict[str, Arm]:
    """Two rows of each adapter; `mixed` adds the peer's own way of many adapters in one batch."""
    owned = [(slot, prompts[k * ROWS_EACH : (k + 1) * ROWS_EACH]) for k, slot in enumerate(sides.slots)]
    pairs = [(slot, prompt) for slot, own in owned for prompt in own]

    def ours_in_turn(number: int) -> list[list[int]]:
        """Each in a bank of one, as whoever has one adapter would; which adapter it is decides nothing about time."""
        made: list[list[int]] = []
        for _, own in owned:
            made += sampled(sides.single, [("a0", prompt) for prompt in own], number)
        return made

    def peft_in_turn(number: int) -> list[list[int]]:
        made: list[list[int]] = []
        for slot, own in owned:
            sides.peft.set_adapter(slot)
            made += generated(sides.peft, own, number)
        return made

    arms: dict[str, Arm] = {
        "ours, one batch": lambda number: sampled(sides.bank, pairs, number),
        "ours, in turn": ours_in_turn,
        "peft, in turn": peft_in_turn,
    }
    if mixed:
        names = [slot for slot, _ in pairs]
        arms["peft, one batch"] = lambda number: generated(sides.peft, prompts, number, adapter_names=names)
    return arms


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
    for arm in arms.values():
        arm(min(WARM_UP_TOKENS, arguments.new_tokens))

    def act(name: str) -> float:
        began = time.perf_counter()
        made = arms[name](arguments.new_tokens)
        seconds = time.perf_counter() - began
        assert [len(own) for own in made] == [arguments.new_tokens] * rows, name
        return seconds

    def describe(seconds: float) -> str:
        return f"{rows * arguments.new_tokens / seconds:.0f} tokens/s"

    return take_turns(f"sampling, {rows} rows", list(arms), arguments.repeats, act, describe)


def share_of_equal_tokens(
    path: Path, prompts: list[tuple[int, ...]], number: int, scratch: Path
) -> dict[str, float | int]:
    """How many greedy tokens of one adapter are the same on both sides in fp32, where rounding rarely decides."""
    sides = Sides(path, dict.fromkeys(("ours", "peft"), "fp32"), scratch, number=1, merge=False)
    ours = sampled(sides.single, [("a0", prompt) for prompt in prompts], number)
    theirs = generated(sides.peft, prompts, number)
    same = [a == b for mine, other in zip(ours, theirs, strict=True) for a, b in zip(mine, other, strict=True)]
    whole = sum(mine == other for mine, other in zip(ours, theirs, strict=True))
    return {"share_of_tokens": sum(same) / len(same), "rows_equal": whole, "rows": len(prompts)}


if __name__ == "__main__":
    main()
