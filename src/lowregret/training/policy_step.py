"""One policy-gradient update of every slot, from its groups of rollouts.

A completion that a group holds several times is computed once and weighs as often as it was drawn: on short answers
that is most of the work. Groups whose rewards are all equal carry no gradient and are not computed, unless divergence
from the base costs something. The flat version is `recipes/rl_loop.py`.
Suffixes: P tokens of completions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowregret.adapters.routing import Routing
from lowregret.batches import PackedBatch, RolloutGroup, TokenizedExample
from lowregret.data.packing import microbatches
from lowregret.models.causal_lm import CausalLM
from lowregret.objectives.advantages import advantages
from lowregret.objectives.policy_gradient import (
    Sampled,
    clipped,
    sequence_ratios,
    surrogate,
    token_ratios,
    weights,
)
from lowregret.specs import RLSpec
from lowregret.training.memory import release_freed_memory
from lowregret.training.optimizer import AdamW
from lowregret.training.step import accumulate_gradients, batch_nll, update_slot


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
    """Tokens that went through forward and backward, prompts included, repeated completions once."""
    updated: bool
    """False where no group had a signal: the optimizer is left alone, so that its momentum moves nothing."""
    diverged: bool


@dataclass(frozen=True, kw_only=True)
class _Learned:
    """A slot's documents, and what their completions' tokens bring, in the order of the documents."""

    documents: list[TokenizedExample]
    sampled: Sampled
    counts: Tensor
    """How often each token's completion was drawn, over the normaliser; float32 [P]."""


def policy_step(
    model: CausalLM,
    groups: Mapping[str, Sequence[RolloutGroup]],
    optimizers: Mapping[str, AdamW],
    rl: RLSpec,
    *,
    tokens_per_microbatch: int,
    factor: float,
    step: int,
) -> dict[str, PolicyStep]:
    """Accumulate the gradients of all completions, then update every slot that had a signal.

    Args:
        groups: by slot.
        factor: the schedule's, on the learning rate.
        step: number of the update, for the rounding of the working copy.
    """
    assert model.trainable is not None
    model.trainable.zero_grad()
    learned = {slot: learned_from(own, rl) for slot, own in groups.items()}
    documents = {slot: own.documents for slot, own in learned.items() if own.documents}
    tallies = {slot: _Tally() for slot in groups}
    done = dict.fromkeys(groups, 0)
    for batch in microbatches(documents, tokens_per_microbatch) if documents else ():
        _one_batch(model, batch.to(model.device), learned, done, rl, tallies)
        release_freed_memory(model.device)
    reports: dict[str, PolicyStep] = {}
    for slot, tally in tallies.items():
        updated = slot in documents
        norm, healthy = 0.0, True
        if updated:
            norm, healthy = update_slot(
                model, slot, optimizers[slot], math.isfinite(tally.objective), factor=factor, step=step
            )
        reports[slot] = tally.report(norm, updated=updated, diverged=not healthy)
    return reports


def learned_from(groups: Sequence[RolloutGroup], rl: RLSpec) -> _Learned:
    """Documents of a slot: each different completion of a group once."""
    spec = rl.objective
    completions = [rollout.completion for group in groups for rollout in group.rollouts]
    number = len(completions) if spec.normaliser == "completions" else sum(c.num_tokens for c in completions)
    documents: list[TokenizedExample] = []
    logprobs: list[np.ndarray] = []
    per_document: list[tuple[float, float]] = []
    for group in groups:
        if not group.has_signal and not spec.kl:
            continue
        gains = advantages(group.rewards, divide_by_std=spec.divide_by_std)
        seen: dict[tuple[bytes, float], int] = {}
        for rollout, gain in zip(group.rollouts, gains.tolist(), strict=True):
            said = rollout.completion
            key = (said.tokens.tobytes(), gain)
            if key in seen:
                own_gain, count = per_document[seen[key]]
                per_document[seen[key]] = (own_gain, count + 1)
                continue
            seen[key] = len(documents)
            tokens = np.concatenate([np.array(group.prompt, dtype=np.int32), said.tokens.astype(np.int32)])
            documents.append(TokenizedExample(tokens=tokens, completion=np.arange(len(tokens)) >= len(group.prompt)))
            logprobs.append(said.logprobs)
            per_document.append((gain, 1))
    lengths = torch.tensor([len(own) for own in logprobs], dtype=torch.int64)

    def of_tokens(values: list[float]) -> Tensor:
        return torch.repeat_interleave(torch.tensor(values, dtype=torch.float32), lengths)

    sampled = Sampled(
        logprobs=torch.from_numpy(np.concatenate(logprobs)) if logprobs else torch.empty(0),
        advantages=of_tokens([gain for gain, _ in per_document]),
        completions=torch.repeat_interleave(torch.arange(len(lengths)), lengths),
        base_logprobs=None,
    )
    return _Learned(
        documents=documents, sampled=sampled, counts=of_tokens([count / number for _, count in per_document])
    )


def _one_batch(
    model: CausalLM,
    batch: PackedBatch,
    learned: Mapping[str, _Learned],
    done: dict[str, int],
    rl: RLSpec,
    tallies: Mapping[str, _Tally],
) -> None:
    """Forward and backward of a micro-batch; `done` says how many tokens of each slot came before it."""
    positions = torch.nonzero(batch.weights).flatten()
    spans = _spans(batch, positions)
    parts = [learned[slot].sampled.part(slice(done[slot], done[slot] + number)) for slot, number in spans.items()]
    counts_P = torch.cat([learned[slot].counts[done[slot] : done[slot] + number] for slot, number in spans.items()]).to(
        model.device
    )
    sampled = _joined(parts, _base(model, batch, rl)).to(model.device)
    ratios_by_sequence = None
    if rl.objective.ratio == "sequence":
        logprobs_P = -batch_nll(model, batch, temperature=_temperature(rl))
        ratios_by_sequence = sequence_ratios(logprobs_P, sampled)

    def ratios(rows: slice, logprobs_P: Tensor) -> Tensor:
        if ratios_by_sequence is not None:
            return ratios_by_sequence[rows]
        return token_ratios(logprobs_P, sampled.part(rows))

    def weigh(rows: slice, losses_P: Tensor) -> Tensor:
        own = sampled.part(rows)
        return counts_P[rows] * weights(-losses_P, ratios(rows, -losses_P), own, rl.objective)

    logprobs_P = -accumulate_gradients(model, batch, positions, weigh, temperature=_temperature(rl))
    ratios_P = ratios(slice(None), logprobs_P)
    start = 0
    for slot, number in spans.items():
        rows = slice(start, start + number)
        tallies[slot].add(logprobs_P[rows], ratios_P[rows], sampled.part(rows), counts_P[rows], rl)
        tallies[slot].tokens += batch.num_real_tokens[slot]
        done[slot] += number
        start += number


def _temperature(rl: RLSpec) -> float:
    """Of the distribution that was sampled; greedy completions are taken as samples at 1."""
    return rl.sampling.temperature or 1.0


def _base(model: CausalLM, batch: PackedBatch, rl: RLSpec) -> Tensor | None:
    """Log-probabilities under the base: the bank with its rows routed to no slot."""
    if not rl.objective.kl:
        return None
    return -batch_nll(model, batch, Routing.from_lengths({None: len(batch.tokens)}), temperature=_temperature(rl))


def _spans(batch: PackedBatch, positions: Tensor) -> dict[str, int]:
    """Loss positions of each slot, in order."""
    numbers: dict[str, int] = {}
    start = 0
    for slot, length in batch.slot_lengths.items():
        numbers[slot] = int(((positions >= start) & (positions < start + length)).sum())
        start += length
    return numbers


def _joined(parts: Sequence[Sampled], base_P: Tensor | None) -> Sampled:
    """Tokens of several slots one after another, completions numbered from 0."""
    completions: list[Tensor] = []
    start = 0
    for part in parts:
        completions.append(part.completions - part.completions[0] + start)
        start = int(completions[-1][-1]) + 1
    return Sampled(
        logprobs=torch.cat([part.logprobs for part in parts]),
        advantages=torch.cat([part.advantages for part in parts]),
        completions=torch.cat(completions),
        base_logprobs=base_P,
    )


class _Tally:
    """Sums over a slot's tokens of one update."""

    def __init__(self) -> None:
        self.objective = 0.0
        self.tokens = 0
        self._number = 0
        self._ratio_sum, self._ratio_max = 0.0, -math.inf
        self._clipped = 0
        self._kl_sum: float | None = None

    def add(self, logprobs_P: Tensor, ratios_P: Tensor, sampled: Sampled, counts_P: Tensor, rl: RLSpec) -> None:
        values_P = surrogate(logprobs_P, ratios_P, sampled, rl.objective)
        self.objective += float((counts_P * values_P).double().sum())
        self._number += len(ratios_P)
        self._ratio_sum += float(ratios_P.double().sum())
        self._ratio_max = max(self._ratio_max, float(ratios_P.max()))
        self._clipped += int(clipped(ratios_P, sampled.advantages, rl.objective).sum())
        if sampled.base_logprobs is not None:
            self._kl_sum = (self._kl_sum or 0.0) + float((logprobs_P - sampled.base_logprobs).double().sum())

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
