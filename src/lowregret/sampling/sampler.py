"""Batched generation for many slots: prompts read once a group, rows refilled as they finish, one pass a token.

Guarantees: a completion depends on its seed, prompt and slot alone, beyond float rounding; its log-probabilities are
those that the learner computes; the slots' weights are the trainer's own, nothing is copied or merged between them.
`Sampler.sample` is the outline. Rows of all slots share every matrix product, as in training (`adapters.grouped`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from lowregret.adapters.routing import Routing
from lowregret.batches import Completion
from lowregret.models.attention import Packing
from lowregret.models.causal_lm import CausalLM
from lowregret.models.kv_cache import KVCache, Recording
from lowregret.sampling.draw import draw, uniforms
from lowregret.sampling.steps import Steps, recorder
from lowregret.specs import SamplingSpec

PREFILL_TOKENS = 4096
"""Prompt tokens read in one pass."""
REFILL_SHARE = 4
"""New rows are let in when a quarter of them is free: a pass over few prompt tokens costs as much as one over many."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Completions wanted of one prompt.

    >>> Request(slot="r1", prompt=(1, 2), seeds=(0, 1)).num_completions
    2
    """

    slot: str | None
    """None is the base without an adapter."""
    prompt: tuple[int, ...]
    """Token ids; at least one."""
    seeds: tuple[int, ...]
    """One for each completion."""

    @property
    def num_completions(self) -> int:
        return len(self.seeds)


@dataclass(kw_only=True)
class _Row:
    """A completion under way."""

    request: int
    index: int
    """Among the completions of its request."""
    seed: int
    held: int
    """Tokens in the cache: the prompt and every drawn token but the last."""
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])


class Sampler:
    """Draws completions from a model's slots."""

    def __init__(
        self,
        model: CausalLM,
        spec: SamplingSpec,
        *,
        stop_tokens: frozenset[int],
        decode: Callable[[list[int]], str] | None = None,
    ) -> None:
        """
        Args:
            stop_tokens: tokens that end a completion.
            decode: token ids to text; needed where the spec has stop strings.
        """
        assert decode is not None or not spec.stop
        self._model, self._spec = model, spec
        self._stop_tokens, self._decode = stop_tokens, decode

    @torch.no_grad()
    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """The completions of each request, in the order of its seeds.

        Raises:
            ValueError: a prompt is empty.
        """
        if any(not request.prompt for request in requests):
            raise ValueError("a prompt is empty; every prompt needs at least one token")
        work = _Work(requests)
        longest = max((len(request.prompt) for request in requests), default=0)
        num_rows = min(self._spec.rows, work.left)
        cache = KVCache(rows=num_rows, length=longest + self._spec.max_new_tokens)
        steps = Steps(model=self._model, cache=cache, record=recorder(self._model))
        rows: list[_Row] = []  # the place in this list is the row of the cache
        with self._model.decoding() if self._spec.max_new_tokens > 1 else nullcontext():
            while work.left or rows:
                free = num_rows - len(rows)
                if work.left and (free >= max(1, num_rows // REFILL_SHARE) or not rows):
                    rows += self._admit(work, free, cache, first=len(rows))
                else:
                    self._step(rows, work, steps)
                self._retire(rows, work, cache)
        return work.completions

    def _admit(self, work: _Work, free: int, cache: KVCache, first: int) -> list[_Row]:
        """Read the next prompts, and draw the first token of each of their rows."""
        admitted: list[_Row] = []
        for chunk in work.take(free):
            prompts = [work.requests[request].prompt for request, _ in chunk]
            packing = Packing(lengths=tuple(map(len, prompts)))
            recording = Recording(packing=packing)
            slots = [
                (work.requests[request].slot, len(prompt)) for (request, _), prompt in zip(chunk, prompts, strict=True)
            ]
            routing = Routing.from_lengths(_lengths(slots))
            device = self._model.device
            tokens = torch.tensor([token for prompt in prompts for token in prompt], device=device)
            positions = torch.cat([torch.arange(len(prompt), device=device) for prompt in prompts])
            # Where one token is all that is wanted, nobody will look back.
            attending = recording if self._spec.max_new_tokens > 1 else packing
            with self._model.routed(routing):
                hidden = self._model.hidden_of(tokens, positions, attending)
            last = [start + length - 1 for start, length in zip(packing.offsets, packing.lengths, strict=True)]
            with self._model.routed(routing.selected(last)):
                logits_PV = self._model.logits(hidden[last])
            new: list[_Row] = []
            for document, (request, indices) in enumerate(chunk):
                seeds = work.requests[request].seeds
                held = len(prompts[document])
                made = [_Row(request=request, index=index, seed=seeds[index], held=held) for index in indices]
                start = first + len(admitted) + len(new)
                cache.fill(slice(start, start + len(made)), recording, document)
                new += made
            counts = torch.tensor([len(indices) for _, indices in chunk], device=device)
            self._draw(new, logits_PV.repeat_interleave(counts, 0))
            admitted += new
        return admitted

    def _step(self, rows: list[_Row], work: _Work, steps: Steps) -> None:
        """One more token for every row."""
        order = sorted(range(len(rows)), key=lambda row: work.place(rows[row].request))
        active = [rows[row] for row in order]
        slots = _lengths([(work.requests[row.request].slot, 1) for row in active])
        tokens, held = [row.tokens[-1] for row in active], [row.held for row in active]
        logits_RV = steps.logits(slots, tokens, order, held)
        for row in active:
            row.held += 1
        self._draw(active, logits_RV)

    def _draw(self, rows: Sequence[_Row], logits_RV: Tensor) -> None:
        numbers = uniforms([row.seed for row in rows], [len(row.tokens) for row in rows])
        tokens, logprobs = draw(logits_RV, numbers, self._spec)
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)

    def _retire(self, rows: list[_Row], work: _Work, cache: KVCache) -> None:
        """Hand over finished rows; the last ones move into their places."""
        for at in reversed(range(len(rows))):
            row = rows[at]
            stopped = self._stopped(row)
            if not stopped and len(row.tokens) < self._spec.max_new_tokens:
                continue
            work.completions[row.request][row.index] = Completion(
                tokens=np.array(row.tokens, dtype=np.int64),
                logprobs=np.array(row.logprobs, dtype=np.float32),
                stopped=stopped,
            )
            last = rows.pop()
            if at < len(rows):
                cache.move(len(rows), at, last.held)
                rows[at] = last

    def _stopped(self, row: _Row) -> bool:
        if row.tokens[-1] in self._stop_tokens:
            return True
        if not self._spec.stop:
            return False
        assert self._decode is not None
        # A token is at least a byte, and a few more may stand behind the string in the last of them.
        longest = max(len(string.encode()) for string in self._spec.stop)
        tail = self._decode(row.tokens[-longest - 8 :])
        return any(string in tail for string in self._spec.stop)


class _Work:
    """Requests that still want completions, by slot, and the completions so far."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        empty = Completion(tokens=np.empty(0, np.int64), logprobs=np.empty(0, np.float32), stopped=False)
        self.completions = [[empty] * request.num_completions for request in requests]
        # The slots take turns, so that every pass has rows of all of them.
        by_slot = {
            slot: [index for index in range(len(requests)) if requests[index].slot == slot]
            for slot in dict.fromkeys(request.slot for request in requests)
        }
        self._places = {slot: place for place, slot in enumerate(by_slot)}
        most = max(map(len, by_slot.values()), default=0)
        order = [own[turn] for turn in range(most) for own in by_slot.values() if turn < len(own)]
        self._waiting = deque((index, list(range(requests[index].num_completions))) for index in order)
        self.left = sum(request.num_completions for request in requests)
        """Completions that were not begun."""

    def place(self, request: int) -> int:
        """Where a request's slot stands in a pass: slots in the order of their first request."""
        return self._places[self.requests[request].slot]

    def take(self, number: int) -> list[list[tuple[int, list[int]]]]:
        """Up to `number` completions as (request, indices), in chunks of at most `PREFILL_TOKENS` prompt tokens.

        Those of a slot stand together in a chunk. A group that does not fit is begun, and its prompt read again later.
        """
        taken: list[tuple[int, list[int]]] = []
        while number and self._waiting:
            request, indices = self._waiting.popleft()
            if len(indices) > number:
                self._waiting.appendleft((request, indices[number:]))
                indices = indices[:number]
            taken.append((request, indices))
            number -= len(indices)
            self.left -= len(indices)
        chunks: list[list[tuple[int, list[int]]]] = []
        room = 0
        for request, indices in taken:
            length = len(self.requests[request].prompt)
            if not chunks or length > room:
                chunks.append([])
                room = PREFILL_TOKENS
            chunks[-1].append((request, indices))
            room -= length
        return [sorted(chunk, key=lambda item: self.place(item[0])) for chunk in chunks]


def _lengths(slots: Sequence[tuple[str | None, int]]) -> dict[str | None, int]:
    return {slot: sum(length for _, length in own) for slot, own in groupby(slots, key=lambda item: item[0])}
