"""How completions are drawn from a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """Temperature, filters, ends and batch of the sampler.

    >>> SamplingSpec().temperature
    1.0
    """

    temperature: float = 1.0
    """Logits are divided by it before the softmax, here and in the learner. 0 takes the most likely token."""
    top_p: float = 1.0
    """Smallest set of tokens with this probability is drawn from. 1 draws from all: anything less makes the sampler's
    distribution another one than the learner's."""
    top_k: int | None = None
    """Only the k most likely tokens are drawn from. None: all."""
    max_new_tokens: int = 256
    """Longest completion in tokens; longer ones are cut off, counted, and scored as they are."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion, besides the model's own end tokens; the string stays in the completion."""
    rows: int = 64
    """Completions that are decoded side by side; a finished one makes room for the next."""
    engine: Literal["own", "vllm"] = "own"
    """`vllm` hands the adapters to a vLLM server in this process, where it is installed."""
