"""Answers to a few held-out prompts before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from lowregret.batches import TokenizedExample
from lowregret.data.tokenizer import TextTokenizer
from lowregret.sampling.sampler import Request, Sampler
from lowregret.specs import SamplingSpec
from lowregret.store.rows import SampleRow
from lowregret.store.run import RunDirectory
from lowregret.training.evaluate import BASE
from lowregret.training.state import RunState

When = Literal["before", "after"]

GREEDY = SamplingSpec(temperature=0.0, max_new_tokens=64)
"""Of a sample: long enough to see whether the answer's form was learned."""


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
        requests = [
            Request(slot=None if s == BASE else s, prompt=prompt, seeds=(0,)) for s in slots for prompt, _ in chosen
        ]
        stop_tokens = frozenset(tokenizer.stop_token_ids)
        answers = Sampler(lane.model, GREEDY, stop_tokens=stop_tokens).sample(requests)
        for index, (answer,) in enumerate(answers):
            tokens = answer.tokens.tolist()
            prompt, reference = chosen[index % len(chosen)]
            rows.append(
                SampleRow(
                    when=when,
                    slot=slots[index // len(chosen)],
                    prompt=tokenizer.decode(list(prompt)),
                    reference=tokenizer.decode(list(reference)),
                    answer=tokenizer.decode(tokens[:-1] if answer.stopped else tokens),
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
