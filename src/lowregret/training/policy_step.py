"""One policy-gradient update of every slot, from its groups of rollouts.

What is equal is computed once: the prompt of a group, which its completions branch from (`models.shared_prefix`); a
completion that a group holds several times, which weighs as often as it was drawn; and completions that differ in their
last token only, which end before it (a last token predicts nothing). That is most of the work. Groups whose rewards are
all equal carry no gradient and are not computed, unless divergence from the base costs something. The flat version is
`recipes/rl_loop.py`.
Suffixes: P tokens of completions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lowregret.adapters.routing import Routing
from lowregret.batches import Completion, PackedBatch, RolloutGroup, TokenizedExample
from lowregret.data.packing import microbatches
from lowregret.models.causal_lm import CausalLM
from lowregret.objectives.advantages import advantages
from lowregret.objectives.policy_gradient import (
    Sampled,
    clipped,
    gains,
    sequence_ratios,
    surrogate,
    token_ratios,
    weights,
)
from lowregret.specs import RLSpec
from lowregret.training.memory import keep_freed_memory
from lowregret.training.optimizer import AdamW
from lowregret.training.step import accumulate_gradients, nll_at, update_slot


@dataclass(frozen=True, kw_only=True)
class PolicyStep:
    """What one update did to one slot.

    >>> PolicyStep(objective=0.1, grad_norm=0.5, ratio_mean=1.0, ratio_max=1.0, clipped=0.0, kl=None, tokens=9,
    ...     updated=True, diverged=False).ratio_max
    1.0
    """

    objective: float
    """Normalised sum over tokens of ratio * advantage, before the update."""
    grad_norm: float
    """Global gradient norm before clipping; 0 where no group had a signal."""
    ratio_mean: float
    """Mean of p_learner / p_sampler over the tokens that carry gradient; NaN where there are none."""
    ratio_max: float
    clipped: float
    """Share of these tokens whose gradient was clipped away."""
    kl: float | None
    """Mean of log p_learner - log p_base over these tokens, nats; None where nobody computed it."""
    tokens: int
    """Tokens that went through forward and backward, prompts included; what is computed once counts once."""
    updated: bool
    """False where no group had a signal: the optimizer is left alone, so that its momentum moves nothing."""
    diverged: bool

    def followed_by(self, later: PolicyStep) -> PolicyStep:
        """Two updates on parts of one batch as one: the later one's numbers where it updated, tokens of both."""
        shown = later if later.updated or later.diverged else self
        return replace(shown, tokens=self.tokens + later.tokens)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A slot's documents of one update, and what is to be learned from them, token by token in their order.

    >>> sorted(Learned.__dataclass_fields__)
    ['counts', 'documents', 'of_document', 'places', 'sampled', 'targets']
    """

    documents: list[TokenizedExample]
    """A prompt and completions without their last tokens, each different one once; those of a group are one document
    with branches, or several."""
    of_document: list[int]
    """Tokens that the completions of each document have."""
    places: Tensor
    """Where in its document the hidden state stands that predicts a token, int64 [P]; tokens stand completion by
    completion, those of a document together."""
    targets: Tensor
    """The token, int64 [P]."""
    sampled: Sampled
    counts: Tensor
    """How often the token's completion was drawn, over the normaliser; float32 [P]."""


def policy_step(
    model: CausalLM,
    groups: Mapping[str, Sequence[RolloutGroup]],
    optimizers: Mapping[str, AdamW],
    rl: RLSpec,
    *,
    tokens_per_microbatch: int,
    factor: float,
) -> dict[str, PolicyStep]:
    """Accumulate the gradients of all completions, then update every slot that had a signal.

    Args:
        groups: by slot.
        factor: the schedule's, on the learning rate.
    """
    assert model.trainable is not None
    model.trainable.zero_grad()
    learned = {slot: learned_from(own, rl, tokens_per_microbatch) for slot, own in groups.items() if _finite(own)}
    documents = {slot: own.documents for slot, own in learned.items() if own.documents}
    tallies = {slot: _Tally() for slot in groups}
    done: dict[str, tuple[int, int]] = dict.fromkeys(groups, (0, 0))
    for batch in microbatches(documents, tokens_per_microbatch) if documents else ():
        _one_batch(model, batch.to(model.device), learned, done, rl, tallies)
        keep_freed_memory(model.device)
    reports: dict[str, PolicyStep] = {}
    for slot, tally in tallies.items():
        if not _finite(groups[slot]):
            model.trainable.retire(slot)
            reports[slot] = tally.report(math.nan, updated=False, diverged=True)
            continue
        updated = slot in documents
        norm, healthy = 0.0, True
        if updated:
            norm, healthy = update_slot(model, slot, optimizers[slot], math.isfinite(tally.objective), factor=factor)
        reports[slot] = tally.report(norm, updated=updated, diverged=not healthy)
    return reports


def _finite(groups: Sequence[RolloutGroup]) -> bool:
    """Whether the slot's weights still gave probabilities when it was sampled: finite weights can overflow there."""
    return all(np.isfinite(rollout.completion.logprobs).all() for group in groups for rollout in group.rollouts)


def learned_from(groups: Sequence[RolloutGroup], rl: RLSpec, most_tokens: int) -> Learned:
    """Documents of a slot, each different completion of a group once.

    Args:
        most_tokens: of a document that branches, as attention sees it.
    """
    spec = rl.objective
    completions = [rollout.completion for group in groups for rollout in group.rollouts]
    assert all(completion.num_tokens for completion in completions), "a completion has at least one token"
    number = len(completions) if spec.normaliser == "completions" else sum(c.num_tokens for c in completions)
    documents: list[_Document] = []
    for group in groups:
        if not group.has_signal and not spec.kl:
            continue
        by_input: dict[bytes, list[_Drawn]] = {}
        for drawn in _drawn(group, divide_by_std=spec.divide_by_std):
            by_input.setdefault(drawn.completion.tokens[:-1].tobytes(), []).append(drawn)
        inputs = list(by_input.values())
        parts = sharing(len(group.prompt), [own[0].completion.num_tokens - 1 for own in inputs], most_tokens)
        documents += [_Document(prompt=group.prompt, inputs=inputs[part]) for part in parts]
    return _learned(documents, number)


def sharing(prefix: int, branches: Sequence[int], most_tokens: int) -> list[slice]:
    """Which neighbouring branches of a prefix are computed as one document.

    In few documents of at most `most_tokens` each, with the prefix before every branch: so attention sees them. Each
    branch alone where sharing would save less than a third of the tokens: attention keeps keys, values and queries of
    a shared prefix for every branch, so that little saving would cost memory.

    >>> sharing(100, [20, 20, 20, 20], 1000)
    [slice(0, 4, None)]
    >>> sharing(100, [20, 20, 20, 20], 250)
    [slice(0, 2, None), slice(2, 4, None)]
    >>> sharing(10, [90, 90], 1000)
    [slice(0, 1, None), slice(1, 2, None)]
    """
    alone = [slice(index, index + 1) for index in range(len(branches))]
    total = prefix * len(branches) + sum(branches)
    target = total / max(1, -(-total // most_tokens))
    shared: list[slice] = []
    size = 0
    for index, branch in enumerate(branches):
        length = prefix + branch
        if not shared or size + length > most_tokens or size + length / 2 > target:
            shared.append(slice(index, index))
            size = 0
        shared[-1] = slice(shared[-1].start, index + 1)
        size += length
    return shared if 3 * (prefix * len(shared) + sum(branches)) <= 2 * total else alone


@dataclass(frozen=True, kw_only=True)
class _Document:
    """A prompt and completions of its group, those that differ in their last token only together."""

    prompt: tuple[int, ...]
    inputs: list[list[_Drawn]]

    @property
    def example(self) -> TokenizedExample:
        """What goes through the model; a single branch is just the rest of its document."""
        branches = [own[0].completion.tokens[:-1] for own in self.inputs]
        tokens = np.concatenate([np.array(self.prompt), *branches]).astype(np.int32)
        lengths = tuple(len(branch) for branch in branches if len(branch))
        return TokenizedExample(
            tokens=tokens,
            completion=np.zeros(len(tokens), dtype=np.bool_),
            branches=lengths if len(lengths) > 1 else (),
        )

    @property
    def drawn(self) -> list[_Drawn]:
        return [one for own in self.inputs for one in own]

    @property
    def places(self) -> list[np.ndarray]:
        """Of the hidden states that predict the tokens of each of `drawn`: the prompt's last one, and then its own."""
        found: list[np.ndarray] = []
        start = len(self.prompt)
        for own in self.inputs:
            length = own[0].completion.num_tokens - 1
            found += [np.concatenate([[len(self.prompt) - 1], start + np.arange(length)])] * len(own)
            start += length
        return found


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A completion of a group with its advantage, and how often the group holds it."""

    completion: Completion
    advantage: float
    count: int


def _drawn(group: RolloutGroup, *, divide_by_std: bool) -> list[_Drawn]:
    """The different completions of a group. Where a scorer gave equal texts different rewards they stay apart."""
    gains = advantages(group.rewards, divide_by_std=divide_by_std).tolist()
    first: dict[tuple[bytes, float], Completion] = {}
    counts: Counter[tuple[bytes, float]] = Counter()
    for rollout, gain in zip(group.rollouts, gains, strict=True):
        key = (rollout.completion.tokens.tobytes(), gain)
        first.setdefault(key, rollout.completion)
        counts[key] += 1
    return [_Drawn(completion=said, advantage=key[1], count=counts[key]) for key, said in first.items()]


def _learned(documents: list[_Document], number: int) -> Learned:
    """Everything that is known of each token."""
    drawn = [one for document in documents for one in document.drawn]
    lengths = torch.tensor([one.completion.num_tokens for one in drawn], dtype=torch.int64)

    def of_tokens(values: Tensor) -> Tensor:
        return torch.repeat_interleave(values, lengths)

    def joined(arrays: list[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(dtype) if arrays else torch.empty(0, dtype=dtype)

    return Learned(
        documents=[document.example for document in documents],
        of_document=[sum(one.completion.num_tokens for one in document.drawn) for document in documents],
        places=joined([places for document in documents for places in document.places], torch.int64),
        targets=joined([one.completion.tokens for one in drawn], torch.int64),
        sampled=Sampled(
            logprobs=joined([one.completion.logprobs for one in drawn], torch.float32),
            advantages=of_tokens(torch.tensor([one.advantage for one in drawn], dtype=torch.float32)),
            completions=of_tokens(torch.arange(len(drawn))),
            base_logprobs=None,
        ),
        counts=of_tokens(torch.tensor([one.count / number for one in drawn], dtype=torch.float32)),
    )


def _one_batch(
    model: CausalLM,
    batch: PackedBatch,
    learned: Mapping[str, Learned],
    done: dict[str, tuple[int, int]],
    rl: RLSpec,
    tallies: Mapping[str, _Tally],
) -> None:
    """Forward and backward of a micro-batch; `done` says how many documents and tokens of each slot came before it."""
    spans, offsets_P = _spans(batch, learned, done)

    def joined(of: Callable[[Learned], Tensor]) -> Tensor:
        return torch.cat([of(learned[slot])[rows] for slot, rows in spans.items()]).to(model.device)

    positions = offsets_P.to(model.device) + joined(lambda own: own.places)
    targets_P, counts_P = joined(lambda own: own.targets), joined(lambda own: own.counts)
    temperature = rl.sampling.temperature
    base_P = None
    if rl.objective.kl:
        base = Routing.from_lengths({None: len(batch.tokens)})
        base_P = -nll_at(model, batch, positions, targets_P, base, temperature=temperature)
    sampled = Sampled(
        logprobs=joined(lambda own: own.sampled.logprobs),
        advantages=joined(lambda own: own.sampled.advantages),
        completions=_numbered([learned[slot].sampled.completions[rows] for slot, rows in spans.items()]).to(
            model.device
        ),
        base_logprobs=base_P,
    )
    by_sequence = None
    if rl.objective.ratio == "sequence":
        by_sequence = sequence_ratios(-nll_at(model, batch, positions, targets_P, temperature=temperature), sampled)

    def ratios(rows: slice, logprobs_P: Tensor) -> Tensor:
        return token_ratios(logprobs_P, sampled.part(rows)) if by_sequence is None else by_sequence[rows]

    def weigh(rows: slice, losses_P: Tensor) -> Tensor:
        own = sampled.part(rows)
        return counts_P[rows] * weights(-losses_P, ratios(rows, -losses_P), own, rl.objective)

    logprobs_P = -accumulate_gradients(model, batch, positions, targets_P, weigh, temperature=temperature)
    ratios_P = ratios(slice(None), logprobs_P)
    start = 0
    for slot, rows in spans.items():
        here = slice(start, start + rows.stop - rows.start)
        tallies[slot].add(logprobs_P[here], ratios_P[here], sampled.part(here), counts_P[here], rl)
        tallies[slot].tokens += batch.num_real_tokens[slot]
        start = here.stop


def _spans(
    batch: PackedBatch, learned: Mapping[str, Learned], done: dict[str, tuple[int, int]]
) -> tuple[dict[str, slice], Tensor]:
    """The tokens of each slot that a micro-batch predicts, and the row where each token's document begins, int64 [P].

    Moves `done` on by the documents and tokens of the batch.
    """
    spans: dict[str, slice] = {}
    starts: list[int] = []
    numbers: list[int] = []
    at = 0
    for segment, (slot, length) in enumerate(zip(batch.segment_slots, batch.segment_lengths, strict=True)):
        if segment not in batch.padding:
            document, token = done[slot]
            number = learned[slot].of_document[document]
            first = spans[slot].start if slot in spans else token
            spans[slot] = slice(first, token + number)
            starts.append(at)
            numbers.append(number)
            done[slot] = (document + 1, token + number)
        at += length
    return spans, torch.repeat_interleave(torch.tensor(starts), torch.tensor(numbers))


def _numbered(completions: Sequence[Tensor]) -> Tensor:
    """Completions of several slots numbered from 0; those of each slot are numbered without gaps, in order."""
    parts: list[Tensor] = []
    start = 0
    for own in completions:
        parts.append(own - own[0] + start)
        start += int(own[-1] - own[0]) + 1
    return torch.cat(parts)


class _Tally:
    """Sums over a slot's tokens of one update, each as often as it was drawn."""

    def __init__(self) -> None:
        self.objective = 0.0
        self.tokens = 0
        self._number = 0.0
        self._ratio_sum, self._ratio_max = 0.0, -math.inf
        self._clipped = 0.0
        self._kl_sum: float | None = None

    def add(self, logprobs_P: Tensor, ratios_P: Tensor, sampled: Sampled, counts_P: Tensor, rl: RLSpec) -> None:
        def total(values_P: Tensor) -> Tensor:
            return (counts_P * values_P).double().sum()

        found = [
            total(surrogate(logprobs_P, ratios_P, sampled, rl.objective)),
            counts_P.double().sum(),
            total(ratios_P),
            ratios_P.max().double(),
            total(clipped(ratios_P, gains(logprobs_P, sampled, rl.objective), rl.objective)),
        ]
        if sampled.base_logprobs is not None:
            found.append(total(logprobs_P - sampled.base_logprobs))
        objective, number, ratios, largest, clips, *kl = torch.stack(found).tolist()  # a GPU is waited for once
        self.objective += objective
        self._number += number
        self._ratio_sum += ratios
        self._ratio_max = max(self._ratio_max, largest)
        self._clipped += clips
        if kl:
            self._kl_sum = (self._kl_sum or 0.0) + kl[0]

    def report(self, grad_norm: float, *, updated: bool, diverged: bool) -> PolicyStep:
        number = self._number
        return PolicyStep(
            objective=self.objective,
            grad_norm=grad_norm,
            ratio_mean=self._ratio_sum / number if number else math.nan,
            ratio_max=self._ratio_max if number else math.nan,
            clipped=self._clipped / number if number else 0.0,
            kl=None if self._kl_sum is None else self._kl_sum / number,
            tokens=self.tokens,
            updated=updated,
            diverged=diverged,
        )
