"""Which engine draws a run's completions: this package's own, or vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lowregret.adapters.bank import AdapterBank
from lowregret.batches import Completion
from lowregret.data.tokenizer import TextTokenizer
from lowregret.models.causal_lm import CausalLM
from lowregret.models.locate import ModelFolder
from lowregret.sampling.sampler import Request, Sampler
from lowregret.sampling.vllm_engine import VLLM, VLLMSampler
from lowregret.specs import SamplingSpec


@runtime_checkable
class Draws(Protocol):
    """Draws the completions of each request, in the order of its seeds."""

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]: ...


class Engine:
    """Makes the sampler of each batch. Of vLLM it keeps the base between batches, which takes minutes to load."""

    def __init__(self, folder: ModelFolder, tokenizer: TextTokenizer) -> None:
        self._folder, self._tokenizer = folder, tokenizer
        self._stop_tokens = frozenset(tokenizer.stop_token_ids)
        self._vllm: VLLM | None = None

    def sampler(self, model: CausalLM, spec: SamplingSpec) -> Draws:
        """A sampler of the model's slots as they are now.

        Raises:
            SpecError: vLLM is asked for and can't be had.
        """
        if spec.engine == "own":
            return Sampler(model, spec, stop_tokens=self._stop_tokens, decode=self._tokenizer.decode)
        assert isinstance(model.trainable, AdapterBank)  # `planner.validate_rl` refuses full weights
        if self._vllm is None:
            self._vllm = VLLM(self._folder, model.trainable)
        return VLLMSampler(self._vllm, model.trainable, spec, stop_tokens=self._stop_tokens)
