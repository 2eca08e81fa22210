"""From a group's rewards to advantages.

Suffix: G completions of a group.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def advantages(rewards_G: Float[np.ndarray, " G"], *, divide_by_std: bool = False) -> Float[np.ndarray, " G"]:
    """Reward minus the group's mean; where asked, over the group's standard deviation (science.md, section 1).

    A group whose rewards are all equal has none: its advantages are exactly 0.

    >>> advantages(np.array([1.0, 0.0, 0.0, 1.0])).tolist()
    [0.5, -0.5, -0.5, 0.5]
    >>> advantages(np.array([0.1, 0.1, 0.1])).tolist()
    [0.0, 0.0, 0.0]
    """
    if not np.ptp(rewards_G):
        return np.zeros_like(rewards_G)
    centred_G = rewards_G - rewards_G.mean()
    return centred_G / rewards_G.std() if divide_by_std else centred_G
