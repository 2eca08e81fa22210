"""C7 in reinforcement learning: adapters on attention alone lose there too, on the MLPs alone do not (paper)."""

from __future__ import annotations

from collections.abc import Sequence

from lowregret.studies.accuracy import error_differences
from lowregret.studies.claims.c7_layers import weigh_layers
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Outcome
from lowregret.studies.verdicts import Weighed, judged

QUESTION = "In RL at equal parameters, is attention-only worse than MLP-only, and MLP-only as good as both?"


def c7_rl(outcomes: Sequence[Outcome], margins: Margins | None = None, *, model: str = "") -> Finding:
    """Attention-only ends with more errors than MLP-only, which equals MLP and attention, at equal parameters.

    Rule: as C7 (`c7_layers`), on the final held-out error rate at the measured rate that validation chose, with
    `rl_parity` for equality.
    """
    margins = margins or Margins()

    def rule() -> Weighed:
        named = "final error rate of {}"
        return weigh_layers(outcomes, error_differences, named=named, parity=margins.rl_parity, margins=margins)

    return judged("C7rl", QUESTION, outcomes, rule, model=model)
