"""How far a slot's policy has moved from the base, on its own completions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.routing import Routing
from lowregret.batches import RolloutGroup, TokenizedExample
from lowregret.data.packing import microbatches
from lowregret.training.state import Lane
from lowregret.training.step import batch_nll


def mean_divergence(
    lane: Lane, slot: str, groups: Sequence[RolloutGroup], *, tokens_per_microbatch: int, temperature: float
) -> float | None:
    """Mean of log p - log p_base over the tokens of a slot's completions, nats; the base is the bank without adapters.

    An unbiased estimate of the divergence KL(p || p_base) a token where the completions were drawn from p. None for
    full fine-tuning, which keeps no base.
    """
    if not isinstance(lane.trainable, AdapterBank):
        return None
    documents: list[TokenizedExample] = []
    for group in groups:
        for rollout in group.rollouts:
            tokens = np.concatenate([np.array(group.prompt), rollout.completion.tokens]).astype(np.int32)
            documents.append(TokenizedExample(tokens=tokens, completion=np.arange(len(tokens)) >= len(group.prompt)))
    total, number = 0.0, 0
    for batch in microbatches({slot: documents}, tokens_per_microbatch):
        base = batch_nll(lane.model, batch, Routing.from_lengths({None: len(batch.tokens)}), temperature=temperature)
        own = batch_nll(lane.model, batch, temperature=temperature)
        total += float((base - own).double().sum())
        number += len(own)
    return total / number
