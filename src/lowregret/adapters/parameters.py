"""What an optimizer sees: flat fp32 masters with their accumulated gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ParameterBlock:
    """A flat piece of a slot's masters that shares one learning rate, eps and decay.

    >>> import torch
    >>> ParameterBlock(name="a", role="a", value=torch.zeros(4), grad=torch.zeros(4)).value.numel()
    4
    """

    name: str
    """Unique within the slot: `a`, `b`, or the parameter's name for full fine-tuning."""
    role: Literal["a", "b", "full"]
    """Whose settings apply: A's, B's, or (full fine-tuning) A's."""
    value: Tensor
    """Masters, flat, fp32 (fp64 in tests)."""
    grad: Tensor
    """Gradient accumulated over the step's micro-batches, same shape and dtype."""


class Trainable(Protocol):
    """What a step trains: the slots of a bank, or the full weights."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Live slots, in order."""
        ...

    def blocks(self, slot: str) -> tuple[ParameterBlock, ...]:
        """A slot's masters and gradients."""
        ...

    def zero_grad(self) -> None:
        """Forget the gradients of all slots."""
        ...

    def publish(self, slot: str, step: int) -> None:
        """Bring a slot's masters, changed by the optimizer at `step`, into the working copy that computes."""
        ...

    def retire(self, slot: str) -> None:
        """Take a slot out of training; the others are not touched."""
        ...
