"""The package's own engine as a contender: the job that all contenders of a training benchmark share, and its turns."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beside.turns import peak_mib

RANK, ALPHA = 16, 32.0
SLOT = {"lora": "r16", "full": "full"}
RATE = {"lora": 3e-4, "full": 3e-5}
"""Learning rates that a user would take; equal for all contenders."""
B_SCALE = 0.01
"""Standard deviation of B where gradients are compared: at B = 0 that of A is zero."""
BUDGET = 4096
"""Tokens of a micro-batch: a whole step, as the peer has it."""


def training_job(arguments: argparse.Namespace, method: str, scratch: Path) -> dict[str, Any]:
    """Tokenise the batches once, the same for all contenders."""
    from lowregret.data.load import load_data
    from lowregret.data.tokenizer import TextTokenizer
    from lowregret.models.locate import locate_model
    from lowregret.specs import DataSpec, ModelSpec

    folder = locate_model(ModelSpec(source=arguments.model))
    needed = arguments.steps * arguments.batch_size
    spec = DataSpec(source=arguments.data, limit=4 * needed + 100)
    store = load_data(spec, TextTokenizer.from_folder(folder.path)).train
    rows = [store[index % len(store)] for index in range(needed)]
    return {
        "model": str(folder.path),
        "method": method,
        "batch_size": arguments.batch_size,
        "steps": arguments.steps,
        "threads": arguments.threads,
        "scratch": str(scratch),
        "rows": [{"input_ids": ids.tolist(), "completion_mask": mask.astype(int).tolist()} for ids, mask in rows],
    }


def tokens_of(job: dict[str, Any]) -> list[int]:
    """Real tokens of each step: padding is nobody's work."""
    size = job["batch_size"]
    return [sum(len(row["input_ids"]) for row in job["rows"][k * size : (k + 1) * size]) for k in range(job["steps"])]


def examples_of(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """A job's rows as the engine takes them."""
    import numpy as np

    from lowregret.batches import TokenizedExample

    return [
        TokenizedExample(tokens=np.array(row["input_ids"]), completion=np.array(row["completion_mask"], dtype=bool))
        for row in rows
    ]


def base_module(path: str, dtype: str, device: str = "cpu") -> Any:
    """The frozen base in a number format."""
    import torch

    from lowregret.models.load import DTYPES, load_module
    from lowregret.models.locate import ModelFolder

    folder = ModelFolder(path=Path(path), name="benchmark", content_hash="")
    return load_module(folder, dtype=DTYPES[dtype], device=torch.device(device))


def bank_on(
    path: str, dtype: str, slots: Sequence[str] = (SLOT["lora"],), *, rank: int = RANK, device: str = "cpu"
) -> tuple[Any, Any]:
    """The base with fresh slots; the same A for the same place in every dtype."""
    from lowregret.models.load import with_bank
    from lowregret.specs import AdapterSpec

    model, bank = with_bank(base_module(path, dtype, device))
    for seed, slot in enumerate(slots):
        bank.join(slot, AdapterSpec(rank=rank, alpha=ALPHA, init_seed=seed))
    return model, bank


def randomise_b(bank: Any, slot: str, *, seed: int = 0) -> None:
    """Give a slot's B random values, as after some training; the same for the same seed."""
    import torch

    b = bank.weights[slot].b
    b.copy_(torch.randn(b.shape, generator=torch.Generator().manual_seed(seed)) * B_SCALE)
    bank.publish(slot)


def lane(path: str, method: str, dtype: str) -> tuple[Any, Any]:
    """A model and what trains on it: one adapter, or all weights."""
    import torch

    from lowregret.models.load import DTYPES, cast_parameters, with_full
    from lowregret.specs import FullSpec

    if method == "lora":
        return bank_on(path, dtype)
    module = base_module(path, "fp32")
    masters = {name: p.detach() for name, p in module.named_parameters()} if dtype == "bf16" else None
    cast_parameters(module, DTYPES[dtype])
    model, full = with_full(module, FullSpec(), masters=masters)
    assert model.dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
    return model, full


def optimizer_of(trainable: Any, slot: str, *, lr: float) -> Any:
    """AdamW as all contenders have it."""
    from lowregret.specs import OptimSpec
    from lowregret.training.optimizer import AdamW

    return AdamW(OptimSpec(lr=lr), trainable.blocks(slot))


def train_ours(job: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The engine's own step on packed batches; what a turn of any training contender returns."""
    from lowregret.data.packing import microbatches
    from lowregret.training.step import train_step

    method, size = job["method"], job["batch_size"]
    slot = SLOT[method]
    model, trainable = lane(job["model"], method, dtype)
    optimizers = {slot: optimizer_of(trainable, slot, lr=RATE[method])}
    examples = examples_of(job["rows"])
    losses: list[float] = []
    seconds: list[float] = []
    for step in range(job["steps"]):
        started = time.perf_counter()
        batches = microbatches({slot: examples[step * size : (step + 1) * size]}, BUDGET)
        losses.append(train_step(model, batches, optimizers, factor=1.0)[slot].loss)
        seconds.append(time.perf_counter() - started)
    return {"losses": losses, "seconds": seconds, "tokens": tokens_of(job), "peak_mib": peak_mib()}


def gradients_of_ours(job: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Gradients of the first `checked` rows, by the peer's names."""
    from lowregret.data.packing import microbatches
    from lowregret.training.step import train_step

    method = job["method"]
    slot = SLOT[method]
    model, trainable = lane(job["model"], method, dtype)
    if method == "lora":
        randomise_b(trainable, slot)
    optimizers = {slot: optimizer_of(trainable, slot, lr=1e-30)}  # the step's gradients stay where they are after it
    batches = microbatches({slot: examples_of(job["rows"][: job["checked"]])}, BUDGET)
    train_step(model, batches, optimizers, factor=1.0)
    blocks = {block.name: block.grad for block in trainable.blocks(slot)}
    if method == "full":
        return blocks
    weights, found = trainable.weights[slot], {}
    for letter, of in (("a", weights.a_of), ("b", weights.b_of)):
        parts = blocks[letter].split([masters.numel() for masters in of.values()])
        found |= {f"{site}.lora_{letter.upper()}": part for site, part in zip(of, parts, strict=True)}
    return found


def write_start(job: dict[str, Any], *, random_b: bool) -> Path:
    """The adapter that every contender starts from, as a PEFT folder: untrained, or with a random B."""
    from lowregret.adapters.peft_format import write_adapter

    slot, folder = SLOT["lora"], Path(job["scratch"]) / ("random" if random_b else "fresh")
    _, bank = bank_on(job["model"], "fp32")
    if random_b:
        randomise_b(bank, slot)
    write_adapter(bank, slot, folder, base_model="benchmark")
    return folder
