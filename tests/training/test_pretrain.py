"""A micro base is made once, the same each time, and loads like any other model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from lowregret.cli.main import run
from lowregret.data import micro
from lowregret.data.load import load_data
from lowregret.data.tokenizer import TextTokenizer
from lowregret.errors import ModelError
from lowregret.models.locate import locate_model
from lowregret.models.micro import base_folder
from lowregret.planner.memory import full_params
from lowregret.planner.shapes import read_shape
from lowregret.specs import DataSpec, FullSpec, ModelSpec
from lowregret.training.pretrain import Recipe, ensure_base

SHORT = Recipe(steps=12, batch=16, warmup=4)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`nano`, hardly trained, in a cache of its own."""
    monkeypatch.setenv("LOWREGRET_CACHE", str(tmp_path / "cache"))
    return ensure_base("nano", threads=1, recipe=SHORT)


def test_a_base_is_a_model_folder_that_transformers_loads(made: Path):
    assert locate_model(ModelSpec(source="nano")).path == made == base_folder("nano")
    model = transformers.AutoModelForCausalLM.from_pretrained(made)
    shape = read_shape(made)
    assert sum(p.numel() for p in model.parameters()) == full_params(shape, FullSpec())
    loss = json.loads((made / "recipe.json").read_text())["loss"]
    assert loss < math.log(len(micro.VOCABULARY))
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.isfinite(model(tokens).logits).all()


def test_the_same_recipe_gives_the_same_weights(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = load_file(made / "model.safetensors")
    monkeypatch.setenv("LOWREGRET_CACHE", str(tmp_path / "other"))
    second = load_file(ensure_base("nano", threads=1, recipe=SHORT) / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_base_that_is_there_is_not_made_again(made: Path):
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert ensure_base("nano", threads=1) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == before


def test_a_word_is_a_token_and_the_data_splits(made: Path):
    tokenizer = TextTokenizer.from_folder(made)
    assert tokenizer.encode("w3 w0 w574") == [4, 1, 575]
    sentences = load_data(DataSpec(source="markov", limit=200), tokenizer)
    assert sentences.facts.longest == micro.SENTENCE + 1
    facts = load_data(DataSpec(source="micro-facts", limit=100, validation_size=4, test_size=4), tokenizer)
    # Loss on the eight values and the end, none on the name.
    assert facts.facts.num_completion_tokens == 92 * 9
    assert facts.facts.num_tokens == 92 * 12


def test_a_base_that_was_not_made_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOWREGRET_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="has not been made here yet: lowregret bases micro"):
        locate_model(ModelSpec(source="micro"))
    assert run(["bases", "mega"]) == 2


def test_a_run_on_a_base_learns_its_language(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert made.is_dir()
    # All weights train: this base is hardly pretrained, so an adapter has little to build on.
    flags = ["--data", "markov:first", "--limit", "300", "--full", "--full-lr", "4e-3", "--dtype", "fp32"]
    assert run(["sft", "--model", "nano", *flags, "--steps", "20", "--out", str(tmp_path / "run"), "--json"]) == 0
    (slot,) = json.loads(capsys.readouterr().out)["slots"].values()
    assert slot["final_nll"]["test"] < slot["initial_nll"]["test"] - 0.1


def test_the_schedule_warms_up_stays_and_falls():
    recipe = Recipe(steps=1000)
    assert [round(recipe.factor(step), 3) for step in (1, 100, 600, 800, 1000)] == [0.01, 1.0, 1.0, 0.525, 0.05]
