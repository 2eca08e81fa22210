"""AdamW on flat fp32 masters, one state a slot, with settings for A and B of their own.

Equal to `torch.optim.AdamW` step for step (`tests/promises/test_optimizer.py`), but that with eps 0 a weight whose
gradients were all zero stays where it is (A at the first step, where B is zero) instead of becoming NaN. Kept here
because a slot's state must join, leave, be saved and be resumed by itself, and because A and B differ in learning rate,
eps and decay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowregret.adapters.parameters import ParameterBlock
from lowregret.kernels import native
from lowregret.specs import OptimSpec, ScheduleSpec

CHUNK = 1 << 20
"""Elements updated at once: small enough that the four operands stay in the cache between passes."""
CHUNK_CUDA = 1 << 26
"""The same on a GPU, where a launch costs more than a pass over a few megabytes: 256 MiB of an operand."""
BOUND = 1e30
"""Masters below this leave room for alpha / rank in fp32."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a step did to a slot's masters.

    >>> Update(norm=0.5, bounded=True).norm
    0.5
    """

    norm: float
    """Global norm of the gradient before clipping."""
    bounded: bool
    """Whether all masters are below `BOUND` in magnitude; where the norm is not finite they were not touched."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """First and second moment of one block, flat, same dtype as its masters.

    >>> Moments(first=torch.zeros(2), second=torch.zeros(2)).first.numel()
    2
    """

    first: Tensor
    second: Tensor


class AdamW:
    """One slot's optimizer."""

    def __init__(self, spec: OptimSpec, blocks: tuple[ParameterBlock, ...]) -> None:
        assert spec.lr is not None, "the planner fills the learning rate before a run starts"
        self.spec = spec
        self.updates = 0
        self.moments = {
            block.name: Moments(first=torch.zeros_like(block.value), second=torch.zeros_like(block.value))
            for block in blocks
        }

    def step(self, blocks: tuple[ParameterBlock, ...], factor: float) -> Update:
        """Update the masters in place.

        Args:
            blocks: the slot's masters and gradients.
            factor: the schedule's factor on the learning rate.

        Returns:
            What it did. Where the gradient's norm is not finite nothing is changed.
        """
        norm = _norm([block.grad for block in blocks])
        if not math.isfinite(norm):
            return Update(norm=norm, bounded=False)
        clip = self.spec.clip_norm
        scale = 1.0 if clip is None or norm <= clip else clip / norm
        self.updates += 1
        unknown = [block.value for block in blocks if not self._update(block, factor, scale)]
        return Update(norm=norm, bounded=_bounded(unknown))

    def _update(self, block: ParameterBlock, factor: float, scale: float) -> bool:
        """Whether the block's masters are known to be bounded now."""
        spec, moments = self.spec, self.moments[block.name]
        lr, eps, decay = settings(spec, block.role)
        lr *= factor
        beta1, beta2 = spec.betas
        correction1 = 1 - beta1**self.updates
        correction2 = math.sqrt(1 - beta2**self.updates)
        states = (block.value, block.grad, moments.first, moments.second)
        if native.updates(*states):
            return native.adamw(
                *states,
                scale=scale,
                decay=1 - lr * decay,
                betas=spec.betas,
                rate=lr / correction1,
                correction2=correction2,
                eps=eps,
                bound=BOUND,
            )
        size = CHUNK_CUDA if block.value.device.type == "cuda" else CHUNK
        for start in range(0, block.value.numel(), size):
            part = slice(start, start + size)
            value, grad = block.value[part], block.grad[part]
            first, second = moments.first[part], moments.second[part]
            if scale != 1.0:
                grad = grad * scale
            if decay != 0.0:
                value.mul_(1 - lr * decay)
            first.lerp_(grad, 1 - beta1)
            second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            scaled = second.sqrt().div_(correction2).add_(eps)
            if eps == 0.0:
                scaled.masked_fill_(scaled == 0.0, 1.0)
            value.addcdiv_(first, scaled, value=-lr / correction1)
        return False


def _bounded(values: Sequence[Tensor]) -> bool:
    """Below the bound in magnitude; False for NaN. A GPU is waited for once."""
    extremes = [extreme for value in values if value.numel() for extreme in torch.aminmax(value)]
    return not extremes or all(abs(value) < BOUND for value in torch.stack(extremes).tolist())


def _norm(grads: Sequence[Tensor]) -> float:
    """The norm of all of them together, summed in fp64."""
    if native.updates(*grads):
        return math.sqrt(math.fsum(native.squares(grad) for grad in grads))
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]
    return math.hypot(*torch.stack(norms).tolist())  # a GPU is waited for once


def settings(spec: OptimSpec, role: str) -> tuple[float, float, float]:
    """Learning rate, eps and weight decay of a block: B's own where its role is `b`."""
    assert spec.lr is not None
    assert spec.lr_for_b is not None
    if role == "b":
        return spec.lr_for_b, spec.eps_for_b, spec.weight_decay_for_b
    return spec.lr, spec.eps, spec.weight_decay


def schedule_factor(spec: ScheduleSpec, step: int, steps: int) -> float:
    """Factor on the learning rate at step 1..steps.

    Warm-up rises as step / (warmup + 1); linear and cosine then fall to `final` one step after the last, so that the
    last step still learns.

    >>> [schedule_factor(ScheduleSpec(kind="linear", warmup=1), k, 4) for k in (1, 2, 3, 4)]
    [0.5, 1.0, 0.6666666666666667, 0.33333333333333337]
    """
    if step <= spec.warmup:
        return step / (spec.warmup + 1)
    if spec.kind == "constant":
        return 1.0
    progress = (step - spec.warmup - 1) / max(1, steps - spec.warmup)
    shape = 1 - progress if spec.kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return spec.final + (1 - spec.final) * shape
