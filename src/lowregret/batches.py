"""The tensor nouns that cross rooms.

A packed batch is one long row of tokens: documents stand one after another, those of one slot adjacent. Its only
padding rounds up the rows of a slot, by less than one in sixteen. Positions restart with each document; no attention
and no label crosses a document boundary. A document may branch: several continuations of one prefix, which stands there
once and is computed once.
Suffixes: T packed tokens, N documents, L tokens of one document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenizedExample:
    """One document and which of its tokens are completion tokens.

    >>> example = TokenizedExample(tokens=np.array([5, 6, 7]), completion=np.array([False, True, True]))
    >>> example.num_completion_tokens
    2
    """

    tokens: Int[np.ndarray, " L"]
    """Token ids."""
    completion: Bool[np.ndarray, " L"]
    """True where the token is to be predicted with loss. The first token can't be, and none of a document that
    branches: who made that one says which hidden state predicts what."""
    branches: tuple[int, ...] = ()
    """Lengths of continuations at its end, at least two of at least one token each, or none. Each continues what stands
    before all of them, their prefix, and sees nothing of the others."""

    def __post_init__(self) -> None:
        if self.branches:
            assert len(self.branches) > 1
            assert min(self.branches) > 0
            assert sum(self.branches) < len(self.tokens), "branches need a prefix"
            assert not self.completion.any(), "what branches predict is not their neighbour"

    @property
    def num_completion_tokens(self) -> int:
        return int(self.completion[1:].sum())

    @property
    def num_attended(self) -> int:
        """Tokens as attention sees them, the prefix once for each branch."""
        return len(self.tokens) + max(0, len(self.branches) - 1) * (len(self.tokens) - sum(self.branches))


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Documents of one or more slots, packed; one forward and backward holds it.

    >>> batch = PackedBatch(tokens=torch.tensor([5, 6, 7]), positions=torch.tensor([0, 1, 2]),
    ...     targets=torch.tensor([6, 7, 0]), weights=torch.tensor([0., 1., 0.]),
    ...     segment_lengths=(3,), segment_slots=("r8",))
    >>> batch.slots
    ('r8',)
    """

    tokens: Int[Tensor, " T"]
    """Token ids, int64."""
    positions: Int[Tensor, " T"]
    """Position of each token in its own document, int64; a branch goes on where its prefix ends."""
    targets: Int[Tensor, " T"]
    """The next token of the same document; 0 at a document's last token, where the weight is 0. Of no meaning in a
    document that branches, whose weights are 0. int64."""
    weights: Float[Tensor, " T"]
    """Loss weight of predicting `targets[t]` from position t; 1 on completion tokens, else 0. float32."""
    segment_lengths: tuple[int, ...]
    """Length of each document, in order; they sum to T."""
    segment_slots: tuple[str, ...]
    """Slot of each document; documents of one slot are adjacent."""
    padding: frozenset[int] = frozenset()
    """Segments that hold no document but round up their slot's number of rows; no label, nobody attends to them."""
    branches: Mapping[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    """Of the segments that branch, the lengths of their branches (`TokenizedExample.branches`)."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Slots present, in order of their tokens."""
        return tuple(dict.fromkeys(self.segment_slots))

    @property
    def slot_lengths(self) -> dict[str, int]:
        """Rows of each slot, in order; padding included."""
        lengths: dict[str, int] = {}
        for slot, length in zip(self.segment_slots, self.segment_lengths, strict=True):
            lengths[slot] = lengths.get(slot, 0) + length
        return lengths

    @property
    def num_real_tokens(self) -> dict[str, int]:
        """Tokens of each slot's documents."""
        tokens = dict.fromkeys(self.slots, 0)
        for index, (slot, length) in enumerate(zip(self.segment_slots, self.segment_lengths, strict=True)):
            tokens[slot] += 0 if index in self.padding else length
        return tokens

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on another device."""
        return PackedBatch(
            tokens=self.tokens.to(device),
            positions=self.positions.to(device),
            targets=self.targets.to(device),
            weights=self.weights.to(device),
            segment_lengths=self.segment_lengths,
            segment_slots=self.segment_slots,
            padding=self.padding,
            branches=self.branches,
        )


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a slot said to a prompt.

    >>> Completion(tokens=np.array([7, 2]), logprobs=np.array([-0.5, -0.1]), stopped=True).num_tokens
    2
    """

    tokens: Int[np.ndarray, " L"]
    """Token ids, the end token included where there is one: the learner is to learn when to end."""
    logprobs: Float[np.ndarray, " L"]
    """Log-probability of each under the sampler, nats, float32."""
    stopped: bool
    """It ended by itself; False: it was cut off at the longest length."""

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A scored completion.

    >>> said = Completion(tokens=np.array([7]), logprobs=np.array([-0.5]), stopped=True)
    >>> Rollout(completion=said, text="4", reward=1.0, failure="").reward
    1.0
    """

    completion: Completion
    text: str
    """What was scored."""
    reward: float
    failure: str
    """Why there is no score of its own; empty where there is one (`specs.Failure`)."""


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """The rollouts of one slot to one prompt; the advantage of each is its reward minus their mean.

    >>> said = Completion(tokens=np.array([7]), logprobs=np.array([-0.5]), stopped=True)
    >>> rollouts = tuple(Rollout(completion=said, text="", reward=reward, failure="") for reward in (1.0, 0.0))
    >>> RolloutGroup(problem=3, prompt=(1, 2), rollouts=rollouts).has_signal
    True
    """

    problem: int
    """Index of the problem in its split."""
    prompt: tuple[int, ...]
    """Token ids."""
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> Float[np.ndarray, " G"]:
        return np.array([rollout.reward for rollout in self.rollouts])

    @property
    def has_signal(self) -> bool:
        """Whether some rewards differ by more than rounding: else every advantage is 0 and so is the gradient."""
        return bool(np.ptp(self.rewards) > 1e-9 * max(1.0, float(np.abs(self.rewards).max())))
