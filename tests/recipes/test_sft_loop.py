"""The flat loop gives the same losses as the engine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lowregret.adapters.bank import AdapterBank
from lowregret.batches import TokenizedExample
from lowregret.data.load import load_data
from lowregret.data.order import ExampleOrder
from lowregret.data.packing import microbatches
from lowregret.data.tokenizer import TextTokenizer
from lowregret.models.load import load_module, with_bank
from lowregret.models.locate import ModelFolder
from lowregret.specs import AdapterSpec, DataSpec, OptimSpec
from lowregret.training.optimizer import AdamW
from lowregret.training.step import train_step
from tiny_folder import tiny_model_folder, write_questions

RECIPE = Path(__file__).parents[2] / "recipes" / "sft_loop.py"


def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("sft_loop", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sft_loop"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_flat_loop_gives_the_engines_losses(tmp_path: Path) -> None:
    loop = recipe()
    folder = tiny_model_folder(tmp_path / "model")
    source = str(write_questions(tmp_path / "data.jsonl", 60))
    store = load_data(DataSpec(source=source), TextTokenizer.from_folder(folder)).train
    settings = loop.Settings(rank=4, lr=5e-3, steps=8, batch_size=3, seed=1)
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = list(loop.train(plain.eval(), store, settings))

    model = ModelFolder(path=folder, name="tiny", content_hash="")
    lm, bank = with_bank(load_module(model, dtype=torch.float32, device=torch.device("cpu")))
    assert isinstance(bank, AdapterBank)
    bank.join("s", AdapterSpec(rank=4, init_seed=1))
    optimizers = {"s": AdamW(OptimSpec(lr=5e-3), bank.blocks("s"))}
    order, losses = ExampleOrder(len(store), 1), []
    for step in range(8):
        rows = [store[int(index)] for index in order.batch(step, 3)]
        examples = [TokenizedExample(tokens=tokens, completion=completion) for tokens, completion in rows]
        batches = microbatches({"s": examples}, 64)
        losses.append(train_step(lm, batches, optimizers, factor=1.0)["s"].loss)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[-1] < losses[0] - 0.1


def test_the_flat_loop_is_short_enough_to_read() -> None:
    assert len(RECIPE.read_text().splitlines()) < 250
