"""What a simulated study of reinforcement learning is drawn from: accuracies with a plateau in log LR and a collapse.

Against log LR the final accuracy is flat over the plateau's core, falls with the square of the distance below it (too
slow to get there), and collapses just above it. Against steps it rises exponentially; a cell that will collapse rises
for half of the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowregret.studies.outcome import Arm
from lowregret.studies.students_t import Floats

COLLAPSES_AFTER = 0.5
"""Share of the run."""


@dataclass(frozen=True, kw_only=True)
class RLTruth:
    """Accuracies are shares of right answers; widths are decades of learning rate.

    >>> RLTruth().peak
    0.93
    """

    start: float = 0.4
    """Of the base."""
    peak: float = 0.93
    """Of full fine-tuning, on its plateau."""
    plateau: float = 0.5
    """Core of full fine-tuning's."""
    plateau_gain: float = 0.0
    """Core of LoRA's minus that."""
    fall: float = 0.5
    """Accuracy that is lost by squared decade below the core."""
    end: float = 0.03
    """Of a policy that has collapsed."""
    scale: float = 0.15
    """Share of the run in which full fine-tuning closes 1 - 1/e of its way."""
    steps_ratio: float = 1.0
    """LoRA's time scale over full fine-tuning's."""
    shared: float = 0.01
    """Standard deviation of what all arms of a seed share."""
    run: float = 0.01
    """Of a cell's final accuracy."""
    jitter: float = 0.05
    """Of the plateau's place from seed to seed."""
    speed: float = 0.1
    """Of a cell's log time scale."""
    prompts: int = 1000
    """Of each held-out split."""

    def final(self, arm: Arm, decades: Floats, gap: float) -> Floats:
        """Accuracy at the end, so many decades above the middle of the plateau, without noise.

        Args:
            arm: whose plateau and peak.
            decades: distances.
            gap: of the arm's peak below full fine-tuning's.
        """
        half = self._half(arm)
        below = np.maximum(0.0, -half - decades)
        level = np.maximum(self.start, self.peak - gap - self.fall * below**2)
        return np.where(decades > half, self.end, level)

    def collapses(self, arm: Arm, decades: Floats) -> Floats:
        """Where the policy collapses, as 0 and 1."""
        return (decades > self._half(arm)).astype(np.float64)

    def rise(self, arm: Arm, steps: Sequence[int], speed: Floats) -> Floats:
        """Share of the way at each step: (..., step) for time scales (...) off by these e-folds."""
        ratio = 1.0 if arm.method == "full" else self.steps_ratio
        scale = self.scale * arm.steps * ratio * np.exp(speed)
        return -np.expm1(-np.array(steps) / scale[..., None])

    def _half(self, arm: Arm) -> float:
        return (self.plateau + (0.0 if arm.method == "full" else self.plateau_gain)) / 2


def evaluated(steps: int, evaluations: int) -> tuple[int, ...]:
    """Steps of evenly spaced evaluations, from 0.

    >>> evaluated(120, 4)
    (0, 30, 60, 90, 120)
    """
    return tuple(math.ceil(steps * k / evaluations) for k in range(evaluations + 1))
