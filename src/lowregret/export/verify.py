"""Does a merged model act as the trained one does? Forward fidelity by the definition of science.md, measured before
anything is written.

The reference is what was trained, in fp32, against the base in fp32; what is tested is the merged model in its own
format, against the base in that format. Models are loaded one after another: two are in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowregret.adapters.peft_format import StoredAdapter, join_stored
from lowregret.batches import TokenizedExample
from lowregret.errors import ExportError
from lowregret.export.merge import MergeReport, Rounding, cure, replace_weights
from lowregret.models.causal_lm import CausalLM
from lowregret.models.load import load_module, with_bank
from lowregret.models.locate import ModelFolder
from lowregret.specs.fidelity import WIDEST
from lowregret.training.evaluate import BASE, evaluate
from lowregret.training.measure import Fidelity, forward_fidelity

LEAST_SHARE = 0.5
"""Share of an update below which weights rounded to nearest are refused whatever the documents say: a small update's
loss drop can be too small for them to see, while the weights show that it is not there."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Forward fidelity of a merged model, and what it rests on.

    >>> found = Fidelity(estimate=0.9, low=0.7, high=1.1, fp32_drop=0.01)
    >>> Verification(fidelity=found, sequences=20).needed
    320
    """

    fidelity: Fidelity
    sequences: int
    """Held-out documents."""

    @property
    def needed(self) -> int:
        """Documents whose interval would be just narrow enough to be resolved: its width falls with their root."""
        width = self.fidelity.high - self.fidelity.low
        # Rounded before the ceiling: 0.4 / 0.1 is a little more than 4 in binary.
        return math.ceil(round(self.sequences * (width / WIDEST) ** 2, 6))


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Summed NLL of each held-out document without and with what was trained.

    >>> Losses(before=(2.0,), after=(1.5,)).after
    (1.5,)
    """

    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """Held-out documents of a run, and the base that it trained on.

    >>> sorted(Verifier.__dataclass_fields__)
    ['budget', 'examples', 'model']
    """

    model: ModelFolder
    examples: Sequence[TokenizedExample]
    """At least two."""
    budget: int
    """Tokens of a micro-batch."""

    def adapter_losses(self, stored: StoredAdapter) -> Losses:
        """In fp32, base and adapter unmerged."""
        lm, bank = with_bank(self._base(torch.float32))
        join_stored(bank, "adapter", stored)
        found = evaluate(lm, self.examples, (BASE, "adapter"), self.budget)
        return Losses(before=found[BASE].by_example, after=found["adapter"].by_example)

    def full_losses(self, masters: dict[str, Tensor]) -> Losses:
        """In fp32, trained masters in the place of the base's weights."""
        module = self._base(torch.float32)
        before = self._nlls(module)
        replace_weights(module, masters, dtype=torch.float32, rounding="nearest")
        return Losses(before=before, after=self._nlls(module))

    def verify(self, merged: nn.Module, dtype: torch.dtype, reference: Losses) -> Verification:
        """Fidelity of a merged model that computes in `dtype`.

        Raises:
            ExportError: what was trained moves no loss, so that there is nothing to compare with.
        """
        if reference.before == reference.after:
            raise ExportError("what was trained changes the loss of no held-out document; train it further")
        after = self._nlls(merged)
        fidelity = forward_fidelity(
            before_fp32=reference.before,
            after_fp32=reference.after,
            before=self._nlls(self._base(dtype)),
            after=after,
            tokens=[example.num_completion_tokens for example in self.examples],
        )
        return Verification(fidelity=fidelity, sequences=len(self.examples))

    def _base(self, dtype: torch.dtype) -> nn.Module:
        return load_module(self.model, dtype=dtype, device=torch.device("cpu"))

    def _nlls(self, module: nn.Module) -> tuple[float, ...]:
        return evaluate(CausalLM(module), self.examples, (BASE,), self.budget)[BASE].by_example


def require_present(report: MergeReport, dtype: torch.dtype, rounding: Rounding) -> None:
    """Refuse weights in which next to nothing of the update is left.

    Stochastic rounding is not judged by this share, which is right on average only: a single draw of a small update
    scatters around 1.

    Raises:
        ExportError: rounding to nearest has lost the update.
    """
    if dtype == torch.bfloat16 and rounding == "nearest" and report.share_of_update < LEAST_SHARE:
        raise ExportError(
            f"the merge keeps {max(0.0, report.share_of_update):.1%} of the update: the rest is below the rounding; "
            f"{cure(dtype, rounding)}"
        )


def require_faithful(verification: Verification, dtype: torch.dtype, rounding: Rounding) -> None:
    """Refuse a merged model that is shown to act otherwise than what was trained.

    Raises:
        ExportError: its forward fidelity fails.
    """
    found = verification.fidelity
    if found.verdict == "fails":
        raise ExportError(
            f"forward fidelity fails: the merged model has {found.estimate:.3f} of the loss drop that was trained "
            f"(95 % interval {found.low:.3f} to {found.high:.3f}, {verification.sequences} held-out documents); "
            f"{cure(dtype, rounding)}"
        )
