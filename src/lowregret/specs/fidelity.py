"""The rule by which a bf16 arithmetic passes (science.md, "Definition"): one rule for runs, studies and exports."""

from __future__ import annotations

from typing import Literal

FidelityVerdict = Literal["passes", "fails", "not resolved"]
LEAST_LOW = 0.95
"""Lower end of an interval around 1 that passes."""
NEAR_ONE = (0.98, 1.02)
"""An estimate within these passes, however wide its interval."""
WIDEST = 0.1
"""An interval around 1 that is wider resolves nothing: take more held-out tokens."""


def fidelity_verdict(estimate: float, low: float, high: float) -> FidelityVerdict:
    """Whether an arithmetic lets an update act fully.

    Args:
        estimate: loss drop in the arithmetic over the drop in fp32.
        low: lower end of the 95 % interval.
        high: upper end.

    >>> fidelity_verdict(0.99, 0.96, 1.02), fidelity_verdict(0.44, 0.40, 0.48), fidelity_verdict(0.97, 0.90, 1.04)
    ('passes', 'fails', 'not resolved')
    """
    contains_one = low <= 1.0 <= high
    if (contains_one and low >= LEAST_LOW) or NEAR_ONE[0] <= estimate <= NEAR_ONE[1]:
        return "passes"
    return "not resolved" if contains_one and high - low > WIDEST else "fails"
