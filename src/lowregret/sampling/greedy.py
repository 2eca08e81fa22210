"""Greedy answers of several slots to several prompts in one batch, with a key-value cache.

For the reader's samples before and after training. The base is read once a token for all rows; a row's slot is routed
as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from lowregret.adapters.routing import Routing
from lowregret.models.causal_lm import CausalLM


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One row of a batch.

    >>> Prompt(slot=None, tokens=(1, 2)).slot is None
    True
    """

    slot: str | None
    """None is the base without an adapter. Rows of one slot must be adjacent."""
    tokens: tuple[int, ...]


@torch.no_grad()
def greedy(
    model: CausalLM, prompts: Sequence[Prompt], *, max_new_tokens: int, stop_tokens: frozenset[int]
) -> list[list[int]]:
    """The most likely continuation of each prompt, without its stop token.

    Raises:
        ValueError: the rows of a slot are not adjacent.
    """
    slots = [slot for slot, _ in groupby(prompts, key=lambda p: p.slot)]
    if len(slots) != len(set(slots)):
        raise ValueError("rows of one slot must be adjacent")
    routing = Routing.from_lengths({slot: sum(p.slot == slot for p in prompts) for slot in slots})
    longest = max(len(p.tokens) for p in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
        mask[row, longest - len(prompt.tokens) :] = 1
    with model.routed(routing):
        return _decode(model, tokens.to(model.device), mask.to(model.device), max_new_tokens, stop_tokens)


def _decode(
    model: CausalLM, tokens: Tensor, mask: Tensor, max_new_tokens: int, stop_tokens: frozenset[int]
) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in range(tokens.shape[0])]
    done = [False] * tokens.shape[0]
    cache = DynamicCache(config=cast(Any, model.model).config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for _ in range(max_new_tokens):
        output = model.body(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        chosen = model.logits(output.last_hidden_state[:, -1]).argmax(-1)
        for row, token in enumerate(chosen.tolist()):
            done[row] = done[row] or token in stop_tokens
            if not done[row]:
                answers[row].append(token)
        if all(done):
            break
        tokens, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
    return answers
