"""C1: alpha, the size of A and the two learning rates are four knobs with two directions that change nothing.

For p, q > 0, (alpha/(pq), init_A p, LR_A p, LR_B q) trains as (alpha, init_A, LR_A, LR_B) does (science.md, section 2).
Exact, so there is no interval: powers of two must agree bitwise with eps 0, to 1e-12 with corrected eps and decay, and
must differ where eps and decay are left as they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lowregret.studies.finding import Finding

QUESTION = "Do alpha, init and the two learning rates leave training unchanged along two directions?"
CORRECTED = 1e-12
"""Largest relative difference of two products B A with corrected eps and decay."""


@dataclass(frozen=True, kw_only=True)
class Transformed:
    """One run beside the run that it should repeat.

    >>> Transformed(p=2.0, q=0.5, kind="eps 0", difference=0.0, cells=("a1", "a2")).agrees
    True
    """

    p: float
    q: float
    kind: Literal["eps 0", "corrected", "uncorrected"]
    """`corrected` scales eps and decay as the invariance asks; `uncorrected` leaves them, and must differ."""
    difference: float
    """Largest |difference| of the trained (alpha/r) B A over all matrices, over the largest entry; or of the held-out
    losses on the way, relative, where that is larger."""
    cells: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether the pair behaves as the invariance says."""
        if self.kind == "eps 0":
            return self.difference == 0
        return self.difference <= CORRECTED if self.kind == "corrected" else self.difference > CORRECTED


def c1(pairs: Sequence[Transformed], *, model: str = "") -> Finding:
    """Supported if every pair behaves as the invariance says, contradicted if one does not (science.md, C1)."""
    wrong = [pair for pair in pairs if not pair.agrees]
    exact = [pair.difference for pair in pairs if pair.kind != "uncorrected"]
    lacking = {"eps 0", "corrected", "uncorrected"} - {pair.kind for pair in pairs}
    if wrong:
        worst = max(wrong, key=lambda pair: pair.difference)
        reason = f"p = {worst.p:g}, q = {worst.q:g} ({worst.kind}) differs by {worst.difference:.2g}"
    elif lacking:
        reason = f"nothing was run with {', '.join(sorted(lacking))}"
    else:
        reason = f"all {len(pairs)} pairs behave as the invariance says; no interval is needed"
    return Finding(
        claim="C1",
        question=QUESTION,
        quantity="largest relative difference of the trained product",
        estimate=max(exact) if exact and math.isfinite(max(exact)) else None,
        interval=None,
        margin=CORRECTED,
        verdict="contradicted" if wrong else "inconclusive" if lacking else "supported",
        seeds=1,
        model=model,
        cells=tuple(cell for pair in pairs for cell in pair.cells),
        reason=reason,
        settles="" if wrong or not lacking else f"runs with {', '.join(sorted(lacking))}",
    )
