"""The claims of science.md, section 4: each a function from finished cells to a finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from lowregret.studies.claims.c1_invariance import Transformed, c1
from lowregret.studies.claims.c2_first_steps import c2
from lowregret.studies.claims.c3_rank_free_rate import c3
from lowregret.studies.claims.c4_ratio import c4
from lowregret.studies.claims.c5_run_length import c5
from lowregret.studies.claims.c6_capacity import c6
from lowregret.studies.claims.c6b_bits import c6b
from lowregret.studies.claims.c7_layers import c7
from lowregret.studies.claims.c7_rl_layers import c7_rl
from lowregret.studies.claims.c8_batch import c8
from lowregret.studies.claims.c9_rl_parity import c9
from lowregret.studies.claims.c9b_steps import c9b
from lowregret.studies.claims.c10_plateau import c10
from lowregret.studies.claims.c11_dynamics import c11
from lowregret.studies.claims.c12_cost import c12
from lowregret.studies.claims.c13_swallowed import c13
from lowregret.studies.claims.c13b_trajectory import c13b
from lowregret.studies.claims.c13c_rates import c13c, c13d, c13e
from lowregret.studies.claims.certify import certify
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Outcome

__all__ = [
    "CLAIMS", "CLAIMS_OF", "Claim", "Transformed",
    "c1", "c10", "c11", "c12", "c13", "c13b", "c13c", "c13d", "c13e",
    "c2", "c3", "c4", "c5", "c6", "c6b", "c7", "c7_rl", "c8", "c9", "c9b", "certify",
]  # fmt: skip


class Claim(Protocol):
    """Judges a claim by finished cells. Never raises for cells that are too few or too bad: that is inconclusive."""

    def __call__(self, outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding: ...


CLAIMS: Mapping[str, Claim] = {
    "C2": c2, "C3": c3, "C4": c4, "C5": c5, "C6": c6, "C6b": c6b, "C7": c7, "C7rl": c7_rl, "C8": c8,
    "C9": c9, "C9b": c9b, "C10": c10, "C11": c11, "C13": c13, "C13b": c13b, "C13c": c13c, "C13d": c13d, "C13e": c13e,
    "certify": certify,
}  # fmt: skip
"""Those that are tested over seeds, by id; C1 and C12 are exact."""

CLAIMS_OF: Mapping[str, tuple[str, ...]] = {
    "rank": ("C6", "certify"),
    "learning-rate": ("C3",),
    "batch-size": ("C8",),
    "layers": ("C7",),
    "early": ("C2",),
    "capacity": ("C6b",),
    "certify": ("certify",),
    "ratio": ("C4", "C5"),
    "dynamics": ("C11",),
    "fidelity": ("C13", "C13b", "C13c", "C13d", "C13e"),
    "rl": ("C9", "C9b", "C10"),
    "rl-layers": ("C7rl",),
}
"""Which claims a protocol can judge."""
