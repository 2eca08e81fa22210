"""Completions drawn by vLLM: the bank's slots are written as PEFT folders and handed over as LoRA requests.

UNTESTED: written to vLLM's documented interface (0.11) and never run, for want of a GPU with vLLM. What to look at
first on such a machine: that `token_ids` hold the end token, and that log-probabilities agree with the learner's
(`ratio_mean` of the first step is 1 within rounding of bf16). The simpler engine, and the default, is `sampler`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.peft_format import write_adapter
from lowregret.batches import Completion
from lowregret.errors import SpecError
from lowregret.models.locate import ModelFolder
from lowregret.sampling.sampler import Request
from lowregret.specs import SamplingSpec

MEMORY_SHARE = 0.4
"""Of the GPU's memory that vLLM takes for its own copy of the base and its cache; the trainer has the rest."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""
SEEDS = 2**63 - 1
"""Largest seed that torch's generators take."""


def require_vllm() -> None:
    """Check that vLLM can be used; nothing is loaded.

    Raises:
        SpecError: it is not installed, or there is no GPU.
    """
    if find_spec("vllm") is None:
        raise SpecError(
            "rl.sampling.engine: vLLM is not installed; install the extra `vllm` in an environment of its own (pip "
            "install '.[vllm]'), or take --sampler own"
        )
    if not torch.cuda.is_available():
        raise SpecError("rl.sampling.engine: vLLM needs an NVIDIA GPU, and torch finds none; take --sampler own")


class VLLM:
    """vLLM's copy of a base, with room for a bank's slots.

    >>> import inspect
    >>> list(inspect.signature(VLLM).parameters)
    ['folder', 'bank']
    """

    def __init__(self, folder: ModelFolder, bank: AdapterBank) -> None:
        """
        Raises:
            SpecError: vLLM can't be used here.
        """
        require_vllm()
        self._package: Any = import_module("vllm")
        self._lora: Any = import_module("vllm.lora.request")
        self._numbers = count(1)
        rank = max(weights.spec.rank for weights in bank.weights.values())
        self._llm: Any = self._package.LLM(
            model=str(folder.path),
            enable_lora=True,
            max_loras=len(bank.slots),
            max_lora_rank=next(allowed for allowed in LORA_RANKS if allowed >= rank),
            gpu_memory_utilization=MEMORY_SHARE,
            logprobs_mode="processed_logprobs",  # after the temperature, as the learner's
        )

    def settings(self, spec: SamplingSpec, *, stop_tokens: frozenset[int], seed: int) -> Any:
        """How one completion is drawn."""
        return self._package.SamplingParams(
            temperature=spec.temperature,
            max_tokens=spec.max_new_tokens,
            stop=list(spec.stop),
            include_stop_str_in_output=True,
            stop_token_ids=sorted(stop_tokens),
            seed=seed & SEEDS,
            logprobs=0,  # of the drawn token alone
        )

    def adapter(self, slot: str, folder: Path) -> Any:
        """A request for an adapter; a new number each time, because the weights behind a number are kept."""
        number = next(self._numbers)
        return self._lora.LoRARequest(f"{slot}-{number}", number, str(folder))

    def generate(self, prompts: list[tuple[int, ...]], settings: list[Any], adapters: list[Any] | None) -> list[Any]:
        """One completion a prompt, in order."""
        tokens = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(tokens, settings, lora_request=adapters, use_tqdm=False)
        return [output.outputs[0] for output in outputs]


class VLLMSampler:
    """Draws completions from a bank's slots as they are now; the interface of `sampler.Sampler`."""

    def __init__(self, vllm: VLLM, bank: AdapterBank, spec: SamplingSpec, *, stop_tokens: frozenset[int]) -> None:
        self._vllm, self._bank, self._spec, self._stop_tokens = vllm, bank, spec, stop_tokens

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """The completions of each request, in the order of its seeds; either all are of slots, or all of the base."""
        slots = list(dict.fromkeys(request.slot for request in requests))
        wanted = [(request, seed) for request in requests for seed in request.seeds]
        settings = [self._vllm.settings(self._spec, stop_tokens=self._stop_tokens, seed=seed) for _, seed in wanted]
        with TemporaryDirectory(prefix="lowregret-adapters-") as folder:
            adapters = {slot: self._written(slot, Path(folder) / slot) for slot in slots if slot is not None}
            assert len(adapters) in (0, len(slots))
            chosen = [adapters[request.slot] for request, _ in wanted if request.slot is not None]
            said = self._vllm.generate([request.prompt for request, _ in wanted], settings, chosen or None)
        drawn = iter(said)
        return [[_completion(next(drawn)) for _ in request.seeds] for request in requests]

    def _written(self, slot: str, folder: Path) -> Any:
        write_adapter(self._bank, slot, folder, base_model="base")
        return self._vllm.adapter(slot, folder)


def _completion(said: Any) -> Completion:
    tokens = list(said.token_ids)
    logprobs = [at[token].logprob for at, token in zip(said.logprobs, tokens, strict=True)]
    return Completion(
        tokens=np.array(tokens, dtype=np.int64),
        logprobs=np.array(logprobs, dtype=np.float32),
        stopped=said.finish_reason == "stop",
    )
