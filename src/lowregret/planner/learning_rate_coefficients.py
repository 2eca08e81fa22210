"""Coefficients of the learning-rate estimate; made by `scripts/fit_learning_rate.py`, not by hand."""

from __future__ import annotations

COEFFICIENTS = {
    "intercept": -7.925047,
    "rank": 0.210091,
    "width": -0.033205,
    "width:llama": -0.577308,
    "family:llama": 0.358968,
    "family:qwen": 0.226882,
    "family:qwen3_5": -0.329098,
    "family:latent": -0.199649,
    "family:nemotron": -0.104150,
    "family:gpt_oss": 0.046036,
}
"""log rate = their sum with `learning_rate.features`."""

LOG_SD = 0.3731
"""Error of the log rate, leave-one-model-out, against the vertices of the sweep."""

FAMILY_SD = 0.2386
"""Spread of the families' offsets: what is not known of a family outside the sweep."""

CONSTANT_OVER_LINEAR = 0.6805
"""The paper's law (constant rate) over this fit (linear decay) at rank 32, 4 models in both."""

FULL_RATIO_SD = 0.35
"""Of the log of LoRA over FullFT: ratios between 5 and 20 were seen in long supervised runs."""

SOURCE = "fit on 86 (model, rank) cells of 25 models of Thinking Machines' published sweep"
