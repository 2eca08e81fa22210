"""On a GPU: an adapter trained beside TRL with PEFT, and eight adapters in one pass, on a Llama of a billion weights.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --shape tiny --smoke

The base has the shape of Llama-3.2-1B and random weights, so that nothing has to be fetched; documents are random
tokens, about 400 each, the last 60 % with loss. Both sides compute in bf16 from the same files and the same batches.
Where Liger's kernels are installed, TRL takes a turn with them too, and the better of both is the peer. Eight adapters
have one document each: `together` is one bank, `in-turn` is one bank of one adapter after another on one loaded base.
Each turn is a process of its own; contenders take turns; medians over steps after the first two. The share of the
card's speed counts the multiply-adds that a step needs (`lowregret.planner.flops`) against those of a square product of
bf16 that is timed in the same process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from beside.envelope import Answer, write_result
from beside.ours import RANK, RATE, SLOT, bank_on, examples_of, optimizer_of, tokens_of
from beside.trl_sft import train_trl
from beside.turns import give, in_process_of_its_own, median, need, parse, parser_of, peak_mib, take_turns

SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
    },
}
WARM_UP = 2
"""Steps that no median takes: kernels are compiled and chosen in them."""
SHARE_WITH_LOSS = 0.6
SQUARE = {"1b": 8192, "tiny": 256}
"""Rows of the timed product."""
ADAPTERS = [f"s{k}" for k in range(8)]
SHORT = {"steps": 8}


def main() -> None:
    """Let the contenders take turns and sum up."""
    started = time.perf_counter()
    parser = parser_of(__doc__, data="random tokens", short=SHORT)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="1b", help="of the base (1b)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for trying the script (cuda)")
    parser.add_argument("--batch-size", type=int, default=32, help="documents a step, beside TRL (32)")
    parser.add_argument("--mean-length", type=int, default=400, help="tokens of a document (400)")
    parser.add_argument("--budget", type=int, default=16384, help="tokens per micro-batch of ours (16384)")
    parser.add_argument("--steps", type=int, default=12, help=f"steps of a turn; the first {WARM_UP} are warm-up (12)")
    arguments = parse(parser, SHORT)
    if arguments.child:
        give(run_arm(arguments.child, json.loads(arguments.job.read_text())))
        return
    need(arguments.steps - WARM_UP, arguments, "--steps")
    arms = ["ours", "trl", *(["trl-liger"] if importlib.util.find_spec("liger_kernel") else []), "together", "in-turn"]
    with tempfile.TemporaryDirectory() as scratch:
        base = write_base(Path(scratch) / "base", arguments.shape)
        job_file = Path(scratch) / "job.json"

        def act(arm: str) -> dict[str, Any]:
            size = arguments.batch_size if arm in ("ours", "trl", "trl-liger") else len(ADAPTERS)
            job_file.write_text(json.dumps(job_of(arguments, base, size)))
            return in_process_of_its_own(
                [__file__, "--child", arm, "--job", str(job_file)], arm, threads=arguments.threads
            )

        turns = {arm: own[0] for arm, own in take_turns("gpu", arms, 1, act, describe).items()}
    found = {arm: sums(turn) for arm, turn in turns.items()}
    peer = max((arm for arm in found if arm.startswith("trl")), key=lambda arm: found[arm]["tokens_per_second"])
    result = write_result(
        "gpu",
        arguments=arguments,
        question="How fast does an adapter train on a GPU, alone and with seven others?",
        rows=[
            {"contender": arm, "format": "bf16", "measurements": len(turn["seconds"]) - WARM_UP}
            for arm, turn in turns.items()
        ],
        medians=found,
        answers={
            "gpu_sft": answer(found, "ours", peer),
            "gpu_bank8": answer(found, "together", "in-turn"),
        },
        checks={
            "first_loss_difference": abs(turns["ours"]["losses"][0] - turns[peer]["losses"][0]),
            "largest_loss_difference": max(
                abs(a - b) for a, b in zip(turns["together"]["losses"], turns["in-turn"]["losses"], strict=True)
            ),
            "share_of_speed": found["ours"]["share_of_speed"],
        },
        raw=turns,
        started=started,
        accelerator=turns["ours"]["accelerator"],
    )
    print(json.dumps({key: result[key] for key in ("answers", "checks", "medians")}, indent=1))


WORDS = {
    "ours": "lowregret, bf16",
    "trl": "TRL + PEFT, bf16",
    "trl-liger": "TRL + PEFT + Liger, bf16",
    "together": "8 adapters in one pass, bf16",
    "in-turn": "8 adapters one after another, bf16",
}
"""The contenders, said."""


def answer(found: dict[str, dict[str, float]], ours: str, peer: str) -> Answer:
    """Real tokens a second of one contender over another's."""
    pace, its = (found[arm]["tokens_per_second"] for arm in (ours, peer))
    return Answer(ours=pace, peer=its, unit="real tokens/s", ours_was=WORDS[ours], peer_was=WORDS[peer])


def write_base(folder: Path, shape: str) -> str:
    """Random weights in bf16 and a tokenizer that nobody asks anything."""
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = transformers.LlamaConfig(**SHAPES[shape], tie_word_embeddings=True, pad_token_id=0, eos_token_id=1)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<end>": 1, "?": 2}, unk_token="?"))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="?"
    )
    fast.save_pretrained(folder)
    return str(folder)


def job_of(arguments: argparse.Namespace, base: str, size: int) -> dict[str, Any]:
    """What a contender's process is told: `size` documents a step."""
    import numpy as np

    rng = np.random.default_rng(0)
    vocabulary = SHAPES[arguments.shape]["vocab_size"]
    rows: list[dict[str, Any]] = []
    for _ in range(size * arguments.steps):
        length = int(rng.uniform(0.5, 1.5) * arguments.mean_length)
        tokens = rng.integers(3, vocabulary, length).tolist()
        rows.append({"input_ids": tokens, "completion_mask": [int(at >= 0.4 * length) for at in range(length)]})
    return {
        "model": base,
        "method": "lora",
        "device": arguments.device,
        "shape": arguments.shape,
        "batch_size": size,
        "steps": arguments.steps,
        "budget": arguments.budget,
        "rows": rows,
    }


def run_arm(arm: str, job: dict[str, Any]) -> dict[str, Any]:
    """One contender's turn."""
    if arm.startswith("trl"):
        return train_trl(job | {"liger": arm == "trl-liger"}, "bf16")
    slots = ADAPTERS if arm in ("together", "in-turn") else [SLOT["lora"]]
    model, bank = bank_on(job["model"], "bf16", (), device=job["device"])
    groups = [slots] if arm != "in-turn" else [[slot] for slot in slots]
    seconds, losses = [0.0] * job["steps"], [0.0] * job["steps"]
    for group in groups:
        own_seconds, own_losses = train(job, model, bank, slots, group)
        seconds = [a + b for a, b in zip(seconds, own_seconds, strict=True)]
        losses = [a + b / len(groups) for a, b in zip(losses, own_losses, strict=True)]
    turn = {"seconds": seconds, "losses": losses, "tokens": tokens_of(job), "peak_mib": peak_mib(job["device"])}
    return turn | {"work": work(job), "speed": speed(job), "accelerator": accelerator(job["device"])}


def train(
    job: dict[str, Any], model: Any, bank: Any, slots: list[str], group: list[str]
) -> tuple[list[float], list[float]]:
    """Seconds and mean loss of each step of some of the slots, from fresh."""
    from lowregret.data.packing import microbatches
    from lowregret.specs import AdapterSpec
    from lowregret.training.step import train_step

    for slot in group:
        bank.join(slot, AdapterSpec(rank=RANK, init_seed=slots.index(slot)))
    optimizers = {slot: optimizer_of(bank, slot, lr=RATE["lora"]) for slot in group}
    examples, size = examples_of(job["rows"]), job["batch_size"]
    seconds: list[float] = []
    losses: list[float] = []
    for step in range(job["steps"]):
        own = examples[step * size : (step + 1) * size]
        documents = {slot: own[slots.index(slot) :: len(slots)] for slot in group}
        wait(job["device"])
        started = time.perf_counter()
        reports = train_step(model, microbatches(documents, job["budget"]), optimizers, factor=1.0)
        wait(job["device"])
        seconds.append(time.perf_counter() - started)
        losses.append(sum(report.loss for report in reports.values()) / len(reports))
    for slot in group:
        bank.leave(slot)
    return seconds, losses


def wait(device: str) -> None:
    """For everything that a GPU was told to do."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def accelerator(device: str) -> str | None:
    """Name of the card."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else None


def work(job: dict[str, Any]) -> list[float]:
    """Multiply-adds of each step, counted."""
    from lowregret.planner.flops import flops
    from lowregret.planner.shapes import read_shape

    shape = read_shape(Path(job["model"]))
    adapted = [matrix for matrix in shape.matrices if matrix.kind != "unembed"]
    size, counted = job["batch_size"], list[float]()
    for step in range(job["steps"]):
        rows = job["rows"][step * size : (step + 1) * size]
        tokens = sum(len(row["input_ids"]) for row in rows)
        cost = flops(shape, method="lora", adapted=adapted, rank=RANK, mean_length=tokens / size)
        counted.append(cost.of_run(tokens, sum(sum(row["completion_mask"]) for row in rows)))
    return counted


def speed(job: dict[str, Any]) -> float:
    """Multiply-adds a second of a square product in bf16: the median of ten."""
    import torch

    a = torch.randn(SQUARE[job["shape"]], SQUARE[job["shape"]], dtype=torch.bfloat16, device=job["device"])
    seconds: list[float] = []
    for _ in range(12):
        wait(job["device"])
        started = time.perf_counter()
        torch.mm(a, a)
        wait(job["device"])
        seconds.append(time.perf_counter() - started)
    return a.shape[0] ** 3 / median(seconds[2:])


def sums(turn: dict[str, Any]) -> dict[str, float]:
    """Medians over the steps behind the warm-up."""
    taken = range(WARM_UP, len(turn["seconds"]))
    found = {
        "tokens_per_second": median(turn["tokens"][k] / turn["seconds"][k] for k in taken),
        "seconds_a_step": median(turn["seconds"][k] for k in taken),
        "peak_mib": turn["peak_mib"],
    }
    if "work" in turn:
        found["share_of_speed"] = median(turn["work"][k] / turn["seconds"][k] for k in taken) / turn["speed"]
    return found


def describe(turn: dict[str, Any]) -> str:
    """One line for whoever waits."""
    own = sums(turn)
    share = f", {own['share_of_speed']:.0%} of the card's speed" if "share_of_speed" in own else ""
    return f"{own['tokens_per_second']:.0f} tokens/s, {own['peak_mib']:.0f} MiB{share}"


if __name__ == "__main__":
    main()
