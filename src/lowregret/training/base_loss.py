"""What the base model itself makes of the data: its loss on a sample, and how fast this machine trains on it.

The loss of the first epoch bounds the bits that training can take from the data (science.md section 2), so this is
the measured answer to "how many bits are in my data".
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from lowregret.data.examples import ExampleStore
from lowregret.data.packing import example_of, microbatches
from lowregret.models.load import DTYPES, load_module, with_bank
from lowregret.models.locate import ModelFolder
from lowregret.specs import AdapterSpec
from lowregret.training.evaluate import BASE, evaluate
from lowregret.training.measure import RESAMPLES
from lowregret.training.step import forward_backward

SAMPLE = 128
"""Examples of the sample: on GSM8K its 95 % interval is then about 4 % of the loss wide (docs/log.md)."""

PROBE = AdapterSpec(rank=16)
"""The adapter whose step is timed."""


@dataclass(frozen=True, kw_only=True)
class BaseLoss:
    """Loss of the base on a sample of the training split, and the speed of a training step.

    >>> BaseLoss(nll=0.7, low=0.6, high=0.8, num_examples=8, step_tokens=90, step_completion_tokens=40,
    ...     step_seconds=2.0).nll
    0.7
    """

    nll: float
    """Nats a completion token."""
    low: float
    """Lower end of the 95 % interval, by bootstrap over examples."""
    high: float
    num_examples: int
    step_tokens: int
    """Tokens of the timed forward and backward, prompts included."""
    step_completion_tokens: int
    step_seconds: float
    """Of the second of two equal passes with an adapter of rank 16; the first warms up."""


def measure_base(
    model: ModelFolder,
    examples: ExampleStore,
    *,
    dtype: str,
    device: str,
    threads: int,
    tokens_per_microbatch: int,
    num_examples: int = SAMPLE,
    seed: int = 0,
) -> BaseLoss:
    """Load the base and measure it on a random sample.

    Args:
        model: where its weights lie.
        examples: the training split.
        dtype: `bf16` or `fp32`.
        device: torch's name of it.
        threads: of the CPU.
        tokens_per_microbatch: of each forward.
        num_examples: of the sample; all where there are fewer.
        seed: of the sample and the bootstrap.

    Raises:
        ModelError: the weights can't be loaded.
    """
    torch.set_num_threads(threads)
    rng = np.random.default_rng(seed)
    picked = rng.permutation(len(examples))[:num_examples]
    sample = [example_of(examples, int(index)) for index in picked]
    causal_lm, bank = with_bank(load_module(model, dtype=DTYPES[dtype], device=torch.device(device)))
    held = evaluate(causal_lm, sample, (BASE,), tokens_per_microbatch)[BASE]
    nll = np.asarray(held.by_example)
    tokens = np.asarray([example.num_completion_tokens for example in sample])
    resampled = rng.integers(0, len(sample), (RESAMPLES, len(sample)))
    low, high = np.quantile(nll[resampled].sum(1) / tokens[resampled].sum(1), [0.025, 0.975])
    bank.join("probe", PROBE)
    batch = microbatches({"probe": sample}, tokens_per_microbatch)[0]
    num_completion = int((batch.weights != 0).sum())
    seconds = 0.0
    for _ in range(2):
        bank.zero_grad()
        started = time.perf_counter()
        forward_backward(causal_lm, batch, {"probe": float(num_completion)})
        if causal_lm.device.type == "cuda":
            torch.cuda.synchronize(causal_lm.device)
        seconds = time.perf_counter() - started
    return BaseLoss(
        nll=held.nll,
        low=float(low),
        high=float(high),
        num_examples=len(sample),
        step_tokens=sum(batch.num_real_tokens.values()),
        step_completion_tokens=num_completion,
        step_seconds=seconds,
    )
