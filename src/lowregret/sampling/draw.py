"""One token from each row's logits, and its log-probability.

Each row brings a uniform number of its own, made of (seed, position): what a row draws depends neither on who shares
its batch nor on the order in which rows are drawn, beyond float rounding of its logits.
Suffixes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lowregret.kernels import native
from lowregret.specs import SamplingSpec


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> list[float]:
    """A number in [0, 1) for each (seed, position): the splitmix64 generator of Steele, Lea and Flood (2014).

    >>> [round(u, 4) for u in uniforms([1, 1, 2], [0, 1, 0])] == [round(u, 4) for u in uniforms([1], [0])
    ...     + uniforms([1], [1]) + uniforms([2], [0])]
    True
    """
    with np.errstate(over="ignore"):
        state = np.array([seed & (2**64 - 1) for seed in seeds], dtype=np.uint64)
        state += np.array(positions, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for _ in range(2):  # twice, because neighbouring seeds differ by little
            state += np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    return ((state >> np.uint64(11)) * 2.0**-53).tolist()


def draw(
    logits_RV: Float[Tensor, "R V"], uniforms_R: Sequence[float], spec: SamplingSpec
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """Tokens by inversion of the distribution function, and their log-probabilities, nats.

    The log-probability is that of the softmax at the spec's temperature, before top-k and top-p: what the learner
    computes too. At temperature 0 the token is the most likely one, and its log-probability that at temperature 1.
    """
    if native.serves(logits_RV) and spec.top_k is None and spec.top_p == 1.0:
        uniforms = torch.tensor(uniforms_R, dtype=torch.float64)
        return native.draw(logits_RV.contiguous(), uniforms, temperature=spec.temperature)
    wide_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    if spec.temperature not in (0.0, 1.0):
        wide_RV = wide_RV / spec.temperature
    log_total_R1 = torch.logsumexp(wide_RV, -1, keepdim=True)
    if spec.temperature == 0.0:
        tokens_R1 = wide_RV.argmax(-1, keepdim=True)
    else:
        filtered_RV = filtered(wide_RV, top_k=spec.top_k, top_p=spec.top_p)
        below_RV = torch.softmax(filtered_RV, -1).cumsum(-1)
        total_R1 = below_RV[:, -1:]
        aim_R1 = torch.tensor(uniforms_R, dtype=below_RV.dtype, device=below_RV.device)[:, None] * total_R1
        # Rounding could lift the aim to the total itself, behind which there is no token.
        aim_R1 = torch.minimum(aim_R1, torch.nextafter(total_R1, torch.zeros_like(total_R1)))
        # A row of NaN has no such token: it gets the last one, and its log-probability of NaN tells the learner.
        tokens_R1 = torch.searchsorted(below_RV, aim_R1, right=True).clamp_(max=wide_RV.shape[-1] - 1)
    return tokens_R1[:, 0], (wide_RV.gather(-1, tokens_R1) - log_total_R1)[:, 0]


def filtered(logits_RV: Float[Tensor, "R V"], *, top_k: int | None, top_p: float) -> Float[Tensor, "R V"]:
    """Logits with -inf outside the `top_k` most likely tokens, and then outside the fewest that reach `top_p`.

    What ties with the last of the `top_k` stays too.
    """
    if top_k is not None and top_k < logits_RV.shape[-1]:
        least_R1 = logits_RV.topk(top_k, -1).values[:, -1:]
        logits_RV = logits_RV.masked_fill(logits_RV < least_R1, float("-inf"))
    if top_p < 1.0:
        ordered_RV, order_RV = logits_RV.sort(-1, descending=True)
        probabilities_RV = torch.softmax(ordered_RV, -1)
        before_RV = probabilities_RV.cumsum(-1) - probabilities_RV
        outside_RV = torch.zeros_like(before_RV, dtype=torch.bool).scatter(-1, order_RV, before_RV >= top_p)
        logits_RV = logits_RV.masked_fill(outside_RV, float("-inf"))
    return logits_RV
