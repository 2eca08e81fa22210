"""Arithmetic of a step, counted exactly. The unit is one multiply-add (two FLOPs of a device's data sheet).

One matrix and token: FullFT 3 d_in d_out (forward, gradient of the input, gradient of the weight); LoRA
2 d_in d_out + 3 r (d_in + d_out), because the frozen weight has no gradient (science.md section 2). Attention scores
count on either side: 3 passes of 2 x heads x head_dim x keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lowregret.specs.data import DataFacts
from lowregret.specs.shape import MatrixShape, ModelShape

Method = Literal["lora", "full"]


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Multiply-adds of training on one token.

    >>> Flops(matrices=6.0, attention=2.0, unembed=1.0).per_token
    9.0
    """

    matrices: float
    """Linear layers of the body, adapters included."""
    attention: float
    """Scores and their product with the values, at the data's mean length."""
    unembed: float
    """Logits: of a token that carries loss, the others need none."""

    @property
    def per_token(self) -> float:
        """Of a token that carries loss."""
        return self.matrices + self.attention + self.unembed

    def of_run(self, tokens: float, completion_tokens: float) -> float:
        """Of a run over so many tokens, of which some carry loss."""
        return (self.matrices + self.attention) * tokens + self.unembed * completion_tokens


def flops(
    shape: ModelShape, *, method: Method, adapted: Sequence[MatrixShape] = (), rank: int = 0, mean_length: float
) -> Flops:
    """Multiply-adds of one training token.

    Args:
        shape: of the base.
        method: `lora` or `full` (all weights trained).
        adapted: matrices with an adapter; not used for `full`.
        rank: of the adapters.
        mean_length: tokens of a document, which set how many keys a query sees.
    """
    passes = 3 if method == "full" else 2
    head = 0.0
    body = 0.0
    for matrix in shape.matrices:
        cost = passes * matrix.d_in * matrix.d_out * matrix.active_count
        if matrix.kind == "unembed":
            head += cost
        else:
            body += cost
    if method == "lora":
        for matrix in adapted:
            cost = 3 * matrix.rank_at(rank) * (matrix.d_in + matrix.d_out) * matrix.active_count
            if matrix.kind == "unembed":
                head += cost
            else:
                body += cost
    return Flops(matrices=body, attention=attention_flops(shape, mean_length), unembed=head)


def attention_flops(shape: ModelShape, mean_length: float) -> float:
    """Scores and values of one token, forward and backward: 3 x 2 x heads x head_dim x mean number of keys."""
    windows = shape.attention_windows or (None,) * shape.num_layers
    keys = sum(_mean_keys(mean_length, window) for window in windows)
    return 3 * 2 * shape.num_heads * shape.head_dim * keys


def break_even_rank(shape: ModelShape, adapted: Sequence[MatrixShape]) -> float:
    """Rank at which LoRA costs as much as full fine-tuning: N / 6 for one square matrix of side N.

    Full fine-tuning saves nothing by leaving matrices out, so its whole weight gradient stands against the adapters.
    """
    saved = sum(m.d_in * m.d_out * m.active_count for m in shape.matrices)
    per_rank = 3 * sum((m.d_in + m.d_out) * m.active_count / m.active_experts for m in adapted)
    return saved / per_rank


def run_tokens(facts: DataFacts, *, steps: int, batch_size: int) -> tuple[float, float]:
    """Tokens, and completion tokens, that one slot sees in a run.

    >>> facts = DataFacts(num_examples=10, num_tokens=100, num_completion_tokens=40, longest=20)
    >>> run_tokens(facts, steps=2, batch_size=5)
    (100.0, 40.0)
    """
    examples = steps * batch_size
    return examples * facts.mean_length, examples * facts.num_completion_tokens / max(1, facts.num_examples)


def rollout_tokens(
    facts: DataFacts, *, steps: int, batch_size: int, group: int, max_new_tokens: int
) -> tuple[float, float, float]:
    """Tokens that one slot learns from in a run of RL, how many of them it drew, and tokens that the sampler computes.

    An upper bound: every completion is of the longest kind, none of a group's is like another, and the learner computes
    a prompt for each of them, which it does once for as many as fit a micro-batch.

    >>> facts = DataFacts(num_examples=10, num_tokens=100, num_completion_tokens=0, longest=20)
    >>> rollout_tokens(facts, steps=2, batch_size=5, group=4, max_new_tokens=3)
    (520.0, 120, 220.0)
    """
    prompts = steps * batch_size
    drawn = prompts * group * max_new_tokens
    return prompts * group * facts.mean_length + drawn, drawn, prompts * facts.mean_length + drawn


def forward_flops(shape: ModelShape, *, mean_length: float) -> Flops:
    """Multiply-adds of one token that is only computed, as the sampler does: a third of full training."""
    cost = flops(shape, method="full", mean_length=mean_length)
    return Flops(matrices=cost.matrices / 3, attention=cost.attention / 3, unembed=cost.unembed / 3)


def _mean_keys(length: float, window: int | None) -> float:
    """Mean number of keys that a causal query sees, itself included, in a document of this length."""
    if window is None or length <= window:
        return (length + 1) / 2
    return window - window * (window - 1) / (2 * length)
