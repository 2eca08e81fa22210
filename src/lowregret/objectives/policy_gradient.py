"""The policy gradient as weights on the negative log-likelihood.

The objective is the sum over tokens of ratio * advantage, ratio = p_learner / p_sampler (science.md, section 1). Its
derivative with respect to a token's nll is -(ratio * advantage), so that a step is one of supervised training with
these weights: `weights` gives them for every option, `surrogate` the value itself, and a test holds the first equal to
autograd of the second. The normaliser is the caller's.
Suffixes: P tokens of completions, N completions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lowregret.specs import PolicyGradientSpec


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Tokens of completions as the sampler left them.

    >>> Sampled(logprobs=torch.tensor([-1.0]), advantages=torch.tensor([0.5]), completions=torch.tensor([0]),
    ...     base_logprobs=None).logprobs.shape
    torch.Size([1])
    """

    logprobs: Float[Tensor, " P"]
    """Under the sampler, nats."""
    advantages: Float[Tensor, " P"]
    """Of the completion that a token belongs to."""
    completions: Int[Tensor, " P"]
    """Index of that completion, from 0."""
    base_logprobs: Float[Tensor, " P"] | None
    """Under the base without adapters, where divergence from it costs something."""

    def part(self, rows: slice) -> Sampled:
        """Some of the tokens."""
        base = None if self.base_logprobs is None else self.base_logprobs[rows]
        return Sampled(
            logprobs=self.logprobs[rows],
            advantages=self.advantages[rows],
            completions=self.completions[rows],
            base_logprobs=base,
        )


def weights(
    logprobs_P: Float[Tensor, " P"], ratios_P: Float[Tensor, " P"], sampled: Sampled, spec: PolicyGradientSpec
) -> Float[Tensor, " P"]:
    """Ratio * advantage of each token: minus the derivative of the objective with respect to its nll.

    Args:
        logprobs_P: under the learner, nats.
        ratios_P: of `token_ratios` or `sequence_ratios`.
    """
    gains_P = gains(logprobs_P, sampled, spec)
    kept_P = ratios_P if spec.truncate is None else ratios_P.clamp(max=spec.truncate)
    return torch.where(clipped(ratios_P, gains_P, spec), torch.zeros_like(gains_P), kept_P * gains_P)


def surrogate(
    logprobs_P: Float[Tensor, " P"], ratios_P: Float[Tensor, " P"], sampled: Sampled, spec: PolicyGradientSpec
) -> Float[Tensor, " P"]:
    """The objective of each token, to be made large.

    With `kl` the gain of a token is its advantage minus kl * (log p_learner - log p_base), held fixed: on-policy that
    is the gradient of the divergence from the base, token by token.
    """
    gains_P = gains(logprobs_P.detach(), sampled, spec)
    if spec.truncate is not None:
        # The cut factor is held fixed and the likelihood carries the gradient, else what is cut would carry none.
        fixed_P = ratios_P.detach().clamp(max=spec.truncate)
        return fixed_P * gains_P * torch.exp(logprobs_P - logprobs_P.detach())
    if spec.clip_low is None and spec.clip_high is None:
        return ratios_P * gains_P
    low = 0.0 if spec.clip_low is None else 1.0 - spec.clip_low
    high = float("inf") if spec.clip_high is None else 1.0 + spec.clip_high
    return torch.minimum(ratios_P * gains_P, ratios_P.clamp(low, high) * gains_P)


def clipped(ratios_P: Float[Tensor, " P"], gains_P: Float[Tensor, " P"], spec: PolicyGradientSpec) -> Tensor:
    """Tokens that PPO's clip leaves without gradient, boolean [P]."""
    none = torch.zeros_like(gains_P, dtype=torch.bool)
    above = none if spec.clip_high is None else (ratios_P > 1.0 + spec.clip_high) & (gains_P > 0)
    below = none if spec.clip_low is None else (ratios_P < 1.0 - spec.clip_low) & (gains_P < 0)
    return above | below


def token_ratios(logprobs_P: Float[Tensor, " P"], sampled: Sampled) -> Float[Tensor, " P"]:
    """p_learner / p_sampler of each token."""
    return torch.exp(logprobs_P - sampled.logprobs)


def sequence_ratios(logprobs_P: Float[Tensor, " P"], sampled: Sampled) -> Float[Tensor, " P"]:
    """Geometric mean over a completion of p_learner / p_sampler, for each of its tokens."""
    number = int(sampled.completions.max()) + 1
    sums_N = logprobs_P.new_zeros(number).index_add(0, sampled.completions, logprobs_P - sampled.logprobs)
    counts_N = torch.bincount(sampled.completions, minlength=number)
    return torch.exp(sums_N / counts_N)[sampled.completions]


def gains(logprobs_P: Float[Tensor, " P"], sampled: Sampled, spec: PolicyGradientSpec) -> Float[Tensor, " P"]:
    """Advantage of each token, less what its divergence from the base costs."""
    if sampled.base_logprobs is None:
        return sampled.advantages
    return sampled.advantages - spec.kl * (logprobs_P - sampled.base_logprobs)
