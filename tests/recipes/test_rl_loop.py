"""The flat loop gives the rewards and weights of the engine."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from lowregret.adapters.bank import initial_a
from lowregret.adapters.peft_format import read_adapter
from lowregret.data.problems import ProblemData, load_problems
from lowregret.data.tokenizer import TextTokenizer
from lowregret.models.locate import ModelFolder
from lowregret.rewards.scorer import Scorer
from lowregret.specs import (
    AdapterSpec,
    DataSpec,
    HardwareSpec,
    ModelSpec,
    OptimSpec,
    ResolvedPlan,
    RewardSpec,
    RLSpec,
    RunSpec,
    SlotSpec,
    TrainSpec,
)
from lowregret.store import RunDirectory
from lowregret.store.environment import collect_environment
from lowregret.training.progress import Silent
from lowregret.training.rl import train_rl

RECIPE = Path(__file__).parents[2] / "recipes" / "rl_loop.py"
WORDS = ("<end>", *"0123456789", "max", "=")
STEPS = 4


def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("rl_loop", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rl_loop"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def model_folder(folder: Path) -> Path:
    """A random Llama that knows digits: a tenth of what it says ends in the right one."""
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel(vocab={word: k for k, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([WORDS[0]])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": WORDS[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(WORDS),
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_maxima(file: Path, number: int) -> Path:
    """The larger of some digits; what counts of an answer is its last number."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, str]] = []
    for _ in range(number):
        digits = rng.integers(0, 10, rng.integers(2, 6)).tolist()
        rows.append({"question": f"max {' '.join(map(str, digits))} =", "answer": f"#### {max(digits)}"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def trained_by_the_engine(
    spec: RunSpec, folder: Path, data: ProblemData, out: Path
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Mean reward of each step, and A and B by name."""
    assert spec.rl is not None
    plan = ResolvedPlan(
        spec=spec, facts=data.facts, steps=STEPS, tokens_per_microbatch=64, device="cpu", dtype="fp32", threads=1
    )
    model = ModelFolder(path=folder, name="tiny", content_hash="")
    with (
        RunDirectory.create(out, spec=spec, plan=plan, environment=collect_environment(threads=1)) as run,
        Scorer(spec.rl.rewards) as scorer,
    ):
        train_rl(run, model=model, data=data, scorer=scorer, listener=Silent())
        stored = read_adapter(run.adapter_folder("s"))
        rewards = [row.reward for row in run.read_policy()]
    weights = {f"{site}.a": a for site, a in stored.a_of.items()} | {f"{site}.b": b for site, b in stored.b_of.items()}
    return rewards, weights


def test_the_flat_loop_gives_the_engines_rewards_and_weights(tmp_path: Path) -> None:
    loop = recipe()
    folder = model_folder(tmp_path / "model")
    settings = loop.Settings(
        rank=1, lr=2e-2, steps=STEPS, prompts=6, group=8, max_new_tokens=3, temperature=0.9, seed=3
    )
    adapter = AdapterSpec(rank=1, init_seed=3)
    spec = RunSpec(
        task="rl",
        model=ModelSpec(source=str(folder)),
        data=DataSpec(
            source=str(write_maxima(tmp_path / "maxima.jsonl", 60)), validation_size=2, test_size=4, max_length=32
        ),
        slots=(SlotSpec(name="s", weights=adapter, optim=OptimSpec(lr=2e-2), data_seed=3),),
        train=TrainSpec(steps=STEPS, batch_size=6, eval_early=False),
        rl=RLSpec(rewards=(RewardSpec(source="exact"),), group=8, sampling=settings.sampling),
        hardware=HardwareSpec(device="cpu", dtype="fp32", threads=1),
    )
    assert spec.rl is not None
    tokenizer = TextTokenizer.from_folder(folder)
    data = load_problems(spec.data, spec.rl, tokenizer)
    rewards, weights = trained_by_the_engine(spec, folder, data, tmp_path / "run")

    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = list(loop.train(plain.eval(), data.train, tokenizer, settings))
    assert rewards == expected
    assert len(set(rewards)) > 1
    assert min(rewards) > 0
    assert max(rewards) < 1

    flat = {name: parameter.detach() for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert flat.keys() == weights.keys()
    difference = torch.cat([(weights[name] - value).flatten() for name, value in flat.items()])
    sites = {name.removesuffix(".a"): value.shape[1] for name, value in flat.items() if name.endswith(".a")}
    start = {f"{site}.a": initial_a(adapter, site, d_in) for site, d_in in sites.items()}
    update = torch.cat([(value - start.get(name, 0.0)).flatten() for name, value in flat.items()])
    assert float(update.norm()) > 0.1
    assert float(difference.norm()) <= 1e-4 * float(update.norm())


def test_what_is_sampled_ends_where_a_row_ends(tmp_path: Path) -> None:
    loop = recipe()
    folder = model_folder(tmp_path / "model")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = loop.Settings(max_new_tokens=12)
    said = loop.sample(model.eval(), [11, 3, 4, 12], list(range(40)), settings.sampling, [0])
    lengths = {completion.num_tokens for completion in said}
    assert len(lengths) > 3
    for completion in said:
        assert completion.stopped == (completion.tokens[-1] == 0)
        assert completion.stopped or completion.num_tokens == 12
        assert 0 not in completion.tokens[:-1]


@pytest.mark.parametrize("why", ["never right", "group of one"])
def test_without_a_signal_nothing_moves(why: str, tmp_path: Path) -> None:
    loop = recipe()
    folder = model_folder(tmp_path / "model")
    source = write_maxima(tmp_path / "maxima.jsonl", 20)
    if why == "never right":
        source.write_text("".join(json.dumps({"question": f"max {k} =", "answer": "ten"}) + "\n" for k in range(10)))
    settings = loop.Settings(steps=2, prompts=2, group=1 if why == "group of one" else 4, max_new_tokens=1)
    tokenizer = TextTokenizer.from_folder(folder)
    rl = RLSpec(rewards=(RewardSpec(source="exact"),), sampling=settings.sampling)
    problems = load_problems(DataSpec(source=str(source), validation_size=1, test_size=1), rl, tokenizer).train
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    list(loop.train(model.eval(), problems, tokenizer, settings))
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith(".b"))


def test_the_flat_loop_is_short_enough_to_read() -> None:
    assert len(RECIPE.read_text().splitlines()) < 250
