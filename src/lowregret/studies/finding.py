"""What a study found: one claim, its estimate with interval, the margin set in advance, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["supported", "contradicted", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of `findings.json`.

    >>> Finding(claim="C3", question="Is the best LR free of rank?", quantity="slope of log LR* on log rank",
    ...     estimate=0.05, interval=(-0.02, 0.12), margin=0.143, verdict="supported", seeds=5, model="micro",
    ...     cells=("a1",), reason="the interval lies inside the margin").verdict
    'supported'
    """

    claim: str
    """Id of the claim in science.md, such as `C3` or `C6b`."""
    question: str
    """The claim as a question that the verdict answers with yes (supported) or no (contradicted)."""
    quantity: str
    """What is estimated, with its unit."""
    estimate: float | None
    """None where nothing could be estimated; the reason says why."""
    interval: tuple[float, float] | None
    """Of the level that the verdict's rule needs, which `reason` names."""
    margin: float | tuple[float, float] | None
    """Set in the study's spec before it ran."""
    verdict: Verdict
    seeds: int
    model: str
    cells: tuple[str, ...]
    """Identities of the cells that went in."""
    reason: str
    """One sentence: why this verdict."""
    settles: str = ""
    """What would settle an inconclusive one: how many seeds, which grid."""
    p_value: float | None = None
    """Of the test behind the verdict where there is one, before Holm's correction."""
    details: tuple[tuple[str, float], ...] = ()
    """Further numbers that the report shows, by name."""
