"""Pretrains a micro base: the committed recipe, by the same step that fine-tunes.

A mixture of what studies need (science.md, "Small scale"): second-order and first-order Markov languages other than
those of fine-tuning, facts about a thousand people, the largest of three numbers with mostly wrong labels (so that a
policy has something to learn), and sums. The same name and number of threads give the same weights.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file

from lowregret.batches import TokenizedExample
from lowregret.data import micro
from lowregret.data.packing import microbatches
from lowregret.models.load import prepare_module, with_full
from lowregret.models.micro import BASES, base_folder
from lowregret.specs import FullSpec, OptimSpec
from lowregret.training.optimizer import AdamW
from lowregret.training.step import train_step

NUM_PEOPLE = 1000
RIGHT_LABELS = 0.4
"""Share of right answers to `max3`: the base then answers about two in five."""
LANGUAGES = 16
"""Of each order; their seeds lie far from those that data sets use."""
FIRST_LANGUAGE = 1_000_000
SLOT = "base"
SECONDS_BETWEEN = 10.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and at which rate.

    >>> Recipe().factor(50), Recipe().factor(300)
    (0.5, 1.0)
    """

    steps: int = 700
    batch: int = 64
    """Documents a step."""
    lr: float = 4e-3
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    warmup: int = 100
    flat: float = 0.6
    """Share of the run after which the rate falls."""
    last: float = 0.05
    """Factor that it falls to."""
    shares: tuple[float, float, float] = (0.6, 0.2, 0.1)
    """Of languages, facts and maxima among the documents; the rest are sums."""
    seed: int = 0

    def factor(self, step: int) -> float:
        """On the learning rate, at step 1..steps: warm-up, flat, linear."""
        falling = max(0.0, (step / self.steps - self.flat) / (1 - self.flat))
        return min(1.0, step / min(self.warmup, self.steps)) * (1 - (1 - self.last) * falling)


RECIPES = {"micro-max3": Recipe(steps=1500, batch=192, shares=(0.05, 0.05, 0.85))}
"""Of bases that are made otherwise: `micro-max3` is for RL, and has seen enough maxima to answer two in five."""


def ensure_base(
    name: str, *, threads: int, notify: Callable[[str], None] = lambda _: None, recipe: Recipe | None = None
) -> Path:
    """The folder of a base; it is pretrained where it is not there yet.

    Args:
        name: in `models.micro.BASES`.
        threads: of the CPU; sums depend on it in their last bits.
        notify: told of the progress, in one line each.
        recipe: another than the committed one, for tests.
    """
    folder = base_folder(name)
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
        try:
            pretrain(name, temporary, recipe=recipe or RECIPES.get(name, Recipe()), threads=threads, notify=notify)
            # Whoever came first has made the same.
            if not folder.exists():
                os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def pretrain(name: str, folder: Path, *, recipe: Recipe, threads: int, notify: Callable[[str], None]) -> None:
    """Train a base from scratch on the CPU and write it as a model folder."""
    import transformers

    torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    settings = BASES[name].config(len(micro.VOCABULARY))
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    module = prepare_module(cast(Any, transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)))
    model, full = with_full(module, FullSpec(), slot=SLOT)
    optimizers = {SLOT: AdamW(OptimSpec(lr=recipe.lr, betas=recipe.betas, clip_norm=recipe.clip), full.blocks(SLOT))}
    documents = mixture(np.random.default_rng(recipe.seed), recipe.shares)
    started = last = time.monotonic()
    losses: list[float] = []
    for step in range(1, recipe.steps + 1):
        batch = microbatches({SLOT: [next(documents) for _ in range(recipe.batch)]}, 1 << 30)
        losses.append(train_step(model, batch, optimizers, factor=recipe.factor(step))[SLOT].loss)
        if time.monotonic() - last >= SECONDS_BETWEEN:
            last = time.monotonic()
            left = (last - started) / step * (recipe.steps - step)
            notify(f"making {name}: step {step}/{recipe.steps}, loss {losses[-1]:.2f}, {left:.0f} s left")
    weights = {key: value.detach().contiguous() for key, value in module.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder)
    report = {"name": name, "steps": recipe.steps, "loss": float(np.mean(losses[-20:]))}
    (folder / "recipe.json").write_text(json.dumps(report) + "\n")
    # config.json comes last: a folder without it is no model.
    module.config.save_pretrained(folder)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


def mixture(rng: np.random.Generator, shares: tuple[float, float, float]) -> Iterator[TokenizedExample]:
    """Documents without end: languages, facts, maxima and sums in these shares; loss on every token."""
    language, fact, maximum = (round(share, 6) for share in accumulate(shares))
    numbers = {word: index for index, word in enumerate(micro.VOCABULARY)}
    languages = [
        micro.Language.draw(order=order, seed=FIRST_LANGUAGE + k) for order in (1, 2, 2) for k in range(LANGUAGES)
    ]
    people = [f"{row['question']} {row['answer']}" for row in micro.rows("micro-facts", NUM_PEOPLE, FIRST_LANGUAGE)]
    while True:
        kind = rng.random()
        if kind < language:
            words = languages[int(rng.integers(len(languages)))].sentence(rng)
        elif kind < fact:
            words = people[int(rng.integers(len(people)))].split()
        elif kind < maximum:
            words = _maximum(rng)
        else:
            (row,) = micro.rows("add31", 1, int(rng.integers(1 << 30)))
            words = f"{row['question']} {row['answer']}".split()
        tokens = np.array([numbers[word] for word in (*words, micro.END)], dtype=np.int32)
        yield TokenizedExample(tokens=tokens, completion=np.ones(len(tokens), dtype=np.bool_))


def _maximum(rng: np.random.Generator) -> list[str]:
    (row,) = micro.rows("max3", 1, int(rng.integers(1 << 30)))
    answer = row["answer"]
    if rng.random() > RIGHT_LABELS:
        answer = f"w{micro.NUMBERS[int(rng.integers(len(micro.NUMBERS)))]}"
    return f"{row['question']} {answer}".split()


def write_tokenizer(folder: Path) -> None:
    """A word is a token, blanks part words; no chat template, so that the plain one is used."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {word: index for index, word in enumerate(micro.VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=micro.END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([micro.END])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": micro.END, "model_max_length": 256}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings) + "\n")
