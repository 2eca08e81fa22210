"""Cost against size: tokens a second of a LoRA step against width, length, rank, tokens, and number of adapters.

    python benchmarks/scaling.py

Random Llama-shaped models built from configurations, so that one size changes at a time; ours alone, in its fastest
number format. A curve's points take turns, a step each and round; medians over rounds after the first. `gigaflops` are
what the planner counts (`planner/flops.py`) over the time. Along K, the same documents are also trained one adapter
after another, each adapter in a bank of its own: what packing pays. Along the tokens of a step, a line through time
against multiply-adds gives what a layer costs however few they are (`fixed_macs_per_layer`), by which the planner says
when packing pays (`planner/one_pass.py`); `predicted_gain` is what that says along K.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beside.envelope import write_result
from beside.formats import best
from beside.ours import ALPHA, RANK, optimizer_of
from beside.turns import give, in_process_of_its_own, median, need, parse, parser_of, take_turns

SHORT = {"rounds": 5, "layers": 2, "tokens": 512, "most_width": 512, "most_slots": 8}
WIDTHS, LENGTHS = (128, 256, 512, 1024), (32, 64, 128, 256, 512, 1024, 2048)
RANKS, SLOTS = (1, 4, 16, 64, 256), (1, 2, 4, 8, 16, 32)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048)
VOCABULARY, HEAD_WIDTH = 8192, 64
WIDTH, LENGTH, PER_SLOT = 512, 256, 64
"""What stays the same along the other curves; tokens of each adapter along K."""
LR = 3e-4


def main() -> None:
    """Measure each curve in a process of its own."""
    started = time.perf_counter()
    # Data is only for the race of number formats.
    parser = parser_of(__doc__, data="reasoning-gym:number_sorting", short=SHORT)
    parser.add_argument("--rounds", type=int, default=7, help="steps of every point, after one to warm up (7)")
    parser.add_argument("--layers", type=int, default=4, help="of every model (4)")
    parser.add_argument("--tokens", type=int, default=2048, help="of a step, but along K (2048)")
    parser.add_argument("--most-width", type=int, default=WIDTHS[-1], help="widest model (1024)")
    parser.add_argument("--most-slots", type=int, default=SLOTS[-1], help="largest K (32)")
    arguments = parse(parser, SHORT)
    if arguments.child:
        curve, number_format = arguments.child.split(":")
        give(measure(curve, number_format, arguments))
        return
    need(arguments.rounds, arguments, "--rounds")
    fastest, race = best(arguments, "lora")

    def act(curve: str) -> dict[str, Any]:
        flags = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in (*SHORT, "threads")]
        command = [__file__, "--child", f"{curve}:{fastest['ours']}", *flags]
        return in_process_of_its_own(command, curve, threads=arguments.threads)

    found = take_turns("scaling", list(CURVES), 1, act, lambda curve: f"{len(curve['points'])} points")
    curves = {name: own["points"] for name, (own,) in found.items()}
    medians = {f"{name} {point['x']}": point["medians"] for name, own in curves.items() for point in own}
    write_result(
        "scaling",
        arguments=arguments,
        question="How does the cost of a LoRA step move with width, document length, rank and number of adapters?",
        rows=[
            {"contender": f"{name} {point['x']}", "format": fastest["ours"], "measurements": arguments.rounds}
            for name, own in curves.items()
            for point in own
        ],
        medians=medians,
        answers={},
        checks={"race_of_formats": race, **packing(curves, arguments.layers)},
        raw=curves,
        started=started,
    )
    print(json.dumps(medians, indent=1))


def packing(curves: dict[str, Any], layers: int) -> dict[str, Any]:
    """What the fixed cost of a layer is worth in multiply-adds, and the gain along K that this predicts."""
    import numpy as np

    from lowregret.planner.one_pass import one_pass_gain

    points = curves["tokens"]
    macs = np.array([point["macs"] for point in points])
    seconds = np.array([median(point["seconds"]) for point in points])
    # Weighted, so that a short step counts as much as a long one.
    per_mac, fixed = np.polyfit(macs, seconds, 1, w=1 / seconds)
    of_a_layer = float(fixed / per_mac / layers)
    predicted = {
        str(point["x"]): one_pass_gain(
            macs=point["macs"] / point["x"], slots=point["x"], layers=layers, layer_macs=of_a_layer
        )
        for point in curves["slots"]
    }
    return {"fixed_macs_per_layer": of_a_layer, "predicted_gain": predicted}


class Point:
    """A model with its slots and one batch, ready to step."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        number_format: str,
        *,
        width: int,
        length: int,
        rank: int,
        slots: int,
        own: int,
    ) -> None:
        """
        Args:
            own: tokens of each slot, in documents of at most `length`.
        """
        import torch
        import transformers

        from lowregret.data.packing import microbatches
        from lowregret.models.load import DTYPES, cast_parameters, prepare_module, with_bank
        from lowregret.specs import AdapterSpec

        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=width,
            intermediate_size=width * 5 // 2,
            num_hidden_layers=arguments.layers,
            num_attention_heads=max(2, width // HEAD_WIDTH),
            num_key_value_heads=max(2, width // HEAD_WIDTH),
            vocab_size=VOCABULARY,
            max_position_embeddings=LENGTHS[-1],
            tie_word_embeddings=True,
        )
        self.config = config
        module: Any = prepare_module(transformers.LlamaForCausalLM(config))
        self.model, bank = with_bank(cast_parameters(module, DTYPES[number_format]))
        names = [f"s{k}" for k in range(slots)]
        for seed, name in enumerate(names):
            bank.join(name, AdapterSpec(rank=rank, alpha=ALPHA, init_seed=seed))
        self.optimizers = {name: optimizer_of(bank, name, lr=LR) for name in names}
        documents = {name: documents_of(own, length, seed) for seed, name in enumerate(names)}
        self.batches = microbatches(documents, slots * own)
        self.tokens, self.length, self.rank = slots * own, min(length, own), rank

    def step(self) -> float:
        """Seconds of one step."""
        from lowregret.training.step import train_step

        started = time.perf_counter()
        train_step(self.model, self.batches, self.optimizers, factor=1.0)
        return time.perf_counter() - started

    def macs(self) -> float:
        """Counted multiply-adds of a step; half the tokens carry loss."""
        from lowregret.planner.flops import flops
        from lowregret.planner.shapes import read_shape
        from lowregret.planner.targets import select

        with tempfile.TemporaryDirectory() as folder:
            self.config.save_pretrained(folder)
            shape = read_shape(Path(folder))
        cost = flops(
            shape,
            method="lora",
            adapted=select(shape, ("all",), unembed=False),
            rank=self.rank,
            mean_length=self.length,
        )
        return cost.of_run(self.tokens, self.tokens / 2)


def documents_of(tokens: int, length: int, seed: int) -> list[Any]:
    """Random documents of one length; the second half of each is the completion."""
    import numpy as np

    from lowregret.batches import TokenizedExample

    rng, length = np.random.default_rng(seed), min(length, tokens)
    completion = np.arange(length) >= length // 2
    return [
        TokenizedExample(tokens=rng.integers(1, VOCABULARY, length).astype(np.int32), completion=completion)
        for _ in range(tokens // length)
    ]


def measure(curve: str, number_format: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every point of a curve."""
    import torch

    torch.set_num_threads(arguments.threads)
    points = CURVES[curve](arguments, number_format)
    seconds: dict[int, list[float]] = {x: [] for x in points}
    alone: list[float] = []
    # Along K the first point has one adapter: K runs of it are what one pass is compared with.
    for turn in range(arguments.rounds + 1):
        for x, point in points.items():
            took = point.step()
            if turn:
                seconds[x].append(took)
                if curve == "slots" and x == 1:
                    alone.append(took)
    found = []
    for x, point in points.items():
        middle = median(seconds[x])
        macs = point.macs()
        medians = {"tokens_per_second": point.tokens / middle, "gigaflops": 2 * macs / middle / 1e9}
        if curve == "slots":
            medians["in_turn_over_one_pass"] = x * median(alone) / middle
        found.append({"x": x, "seconds": seconds[x], "macs": macs, "medians": medians})
    return {"points": found}


Curve = Callable[[argparse.Namespace, str], dict[int, Point]]


def _widths(arguments: argparse.Namespace, number_format: str) -> dict[int, Point]:
    same = {"length": LENGTH, "rank": RANK, "slots": 1, "own": arguments.tokens}
    return {
        width: Point(arguments, number_format, width=width, **same) for width in WIDTHS if width <= arguments.most_width
    }


def _lengths(arguments: argparse.Namespace, number_format: str) -> dict[int, Point]:
    same = {"width": WIDTH, "rank": RANK, "slots": 1, "own": arguments.tokens}
    return {
        length: Point(arguments, number_format, length=length, **same)
        for length in LENGTHS
        if length <= arguments.tokens
    }


def _ranks(arguments: argparse.Namespace, number_format: str) -> dict[int, Point]:
    same = {"width": WIDTH, "length": LENGTH, "slots": 1, "own": arguments.tokens}
    return {rank: Point(arguments, number_format, rank=rank, **same) for rank in RANKS}


def _slots(arguments: argparse.Namespace, number_format: str) -> dict[int, Point]:
    same = {"width": WIDTH, "length": PER_SLOT, "rank": RANK, "own": PER_SLOT}
    return {
        slots: Point(arguments, number_format, slots=slots, **same) for slots in SLOTS if slots <= arguments.most_slots
    }


def _tokens(arguments: argparse.Namespace, number_format: str) -> dict[int, Point]:
    same = {"width": WIDTH, "rank": RANK, "slots": 1}
    return {
        tokens: Point(arguments, number_format, length=min(PER_SLOT, tokens), own=tokens, **same)
        for tokens in TOKENS
        if tokens <= arguments.tokens
    }


CURVES: dict[str, Curve] = {
    "width": _widths,
    "length": _lengths,
    "rank": _ranks,
    "tokens": _tokens,
    "slots": _slots,
}


if __name__ == "__main__":
    main()
