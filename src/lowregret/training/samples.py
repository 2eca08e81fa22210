"""Answers to a few held-out prompts before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from lowregret.batches import TokenizedExample
from lowregret.data.tokenizer import TextTokenizer
from lowregret.sampling.greedy import Prompt, greedy
from lowregret.store.rows import SampleRow
from lowregret.store.run import RunDirectory
from lowregret.training.evaluate import BASE
from lowregret.training.state import RunState

When = Literal["before", "after"]

MAX_NEW_TOKENS = 64
"""Length of a sample; enough to see whether the answer's form was learned."""


def write_samples(
    run: RunDirectory, state: RunState, examples: Sequence[TokenizedExample], *, folder: Path, when: When
) -> None:
    """Greedy answers of the base (`before`) or of every live slot (`after`) to the first test prompts."""
    tokenizer = TextTokenizer.from_folder(folder)
    chosen = [split_at_completion(example) for example in examples[: run.plan.spec.train.num_samples]]
    if not chosen:
        return
    rows: list[SampleRow] = []
    for lane in state.lanes if when == "after" else state.lanes[:1]:
        slots = lane.live if when == "after" else (BASE,)
        prompts = [Prompt(slot=None if s == BASE else s, tokens=prompt) for s in slots for prompt, _ in chosen]
        if not prompts:
            continue
        answers = greedy(
            lane.model, prompts, max_new_tokens=MAX_NEW_TOKENS, stop_tokens=frozenset(tokenizer.stop_token_ids)
        )
        for index, answer in enumerate(answers):
            prompt, reference = chosen[index % len(chosen)]
            rows.append(
                SampleRow(
                    when=when,
                    slot=slots[index // len(chosen)],
                    prompt=tokenizer.decode(list(prompt)),
                    reference=tokenizer.decode(list(reference)),
                    answer=tokenizer.decode(answer),
                )
            )
    run.append_samples(rows)


def split_at_completion(example: TokenizedExample) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt tokens up to the first completion token, and that first run of completion tokens.

    A whole text has no prompt: its second half is asked for.
    """
    first = int(np.argmax(example.completion))
    if first == 0:
        first = max(1, len(example.tokens) // 2)
    after = np.flatnonzero(~example.completion[first:])
    last = first + int(after[0]) if after.size else len(example.tokens)
    return tuple(map(int, example.tokens[:first])), tuple(map(int, example.tokens[first:last]))
