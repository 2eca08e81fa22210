"""Optimizer and learning-rate schedule of one slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimSpec:
    """AdamW, with separate settings for A and B where wanted (claim C1 needs them apart).

    For full fine-tuning the A settings are the settings.

    >>> OptimSpec(lr=2e-4).lr_for_b
    0.0002
    """

    lr: float | None = None
    """Learning rate of A (and of B unless `lr_b` is set). None: the planner's choice, filled in the plan."""
    lr_b: float | None = None
    """Learning rate of B. None: the same as A, as in the paper."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = 1e-12
    """Adam's epsilon for A (and B unless `eps_b`). 1e-12, so that small gradients are not damped."""
    eps_b: float | None = None
    """Adam's epsilon for B. None: the same as A."""
    weight_decay: float = 0.0
    """Decoupled weight decay of A (and B unless `weight_decay_b`). 0: decay pulls towards the base model."""
    weight_decay_b: float | None = None
    """Decoupled weight decay of B. None: the same as A."""
    clip_norm: float | None = None
    """Largest global gradient norm of the slot. None: no clipping (it breaks the A/B invariance)."""

    @property
    def lr_for_b(self) -> float | None:
        return self.lr if self.lr_b is None else self.lr_b

    @property
    def eps_for_b(self) -> float:
        return self.eps if self.eps_b is None else self.eps_b

    @property
    def weight_decay_for_b(self) -> float:
        return self.weight_decay if self.weight_decay_b is None else self.weight_decay_b


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """Learning-rate factor by step: warm-up, then constant, linear or cosine.

    >>> ScheduleSpec().kind
    'constant'
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """Constant is the paper's setting; linear and cosine fall to `final` at the last step."""
    warmup: int = 0
    """Steps over which the factor rises linearly from 1/(warmup + 1) to 1."""
    final: float = 0.0
    """Factor at the end of a linear or cosine schedule."""
