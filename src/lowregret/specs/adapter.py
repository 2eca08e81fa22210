"""What trains: a LoRA adapter or the full weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Arithmetic = Literal["accumulator", "add", "addmm"]
"""How an adapter's part of a sum joins the base's in bf16."""
Rounding = Literal["stochastic", "nearest"]
"""How an fp32 number becomes one of the two bf16 numbers beside it."""


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """One LoRA adapter: W' = W + (alpha / rank) B A, A uniform, B zero (science.md section 1).

    >>> AdapterSpec(rank=8).scaling
    4.0
    """

    rank: int
    """Rank r of every adapted matrix, 1 to 512; A is r x d_in, B is d_out x r."""
    alpha: float = 32.0
    """Scale numerator. 32 at every rank keeps the best learning rate nearly independent of the rank;
    alpha proportional to the rank does not."""
    targets: tuple[str, ...] = ("all",)
    """`all` linear layers, `attention`, `mlp`, or module names (`q_proj`, `layers.0.mlp.up_proj`).
    All layers is the default because attention-only is clearly worse at equal parameters."""
    unembed: bool = False
    """Adapt the unembedding (lm_head) too. The paper does; off here because it costs r * (d + vocabulary)
    parameters and breaks weight tying in merged models."""
    init_seed: int = 0
    """Seed of A. Each matrix draws from its own stream, so the same seed gives the same A in any bank."""
    init_scale: float = 1.0
    """Multiplier of A's half-width 1/sqrt(d_in). 1 is the paper's (and PEFT's) initialisation."""
    arithmetic: Arithmetic = "accumulator"
    """How its part joins the base's in bf16: in one fp32 `accumulator` that is rounded once, or, for measurement only,
    as is usual: `add` rounds both and adds (PEFT's), `addmm` adds in fp32 onto a rounded base. Both swallow small
    updates (science.md, "The swallowed update")."""

    @property
    def scaling(self) -> float:
        """alpha / rank, the factor in front of B A."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class FullSpec:
    """Full fine-tuning, the baseline: fp32 masters behind the same step as the adapters.

    >>> FullSpec().support
    'all'
    """

    support: Literal["all", "matched"] = "all"
    """`all` weights, or `matched`: exactly the matrices that an adapter with these targets would adapt,
    the fair baseline where embeddings are a large share of the model."""
    targets: tuple[str, ...] = ("all",)
    """The targets that `matched` matches."""
    unembed: bool = False
    """Whether `matched` holds the unembedding."""
    rounding: Rounding = "stochastic"
    """How fp32 masters become the bf16 working copy. Rounding to nearest swallows small updates
    (3 % of the loss drop realised after one step at 1e-5, science.md); kept for measurement only."""
    rounding_seed: int = 0
    """Seed of the stochastic rounding."""
    start: Literal["stored", "bf16"] = "stored"
    """Weights to start from: as they are stored, or rounded to bf16 first, as adapters in bf16 have their base. It
    matters where more digits are stored (a dequantised GGUF): a published bf16 base lies on bf16's grid, where rounding
    to nearest swallows updates; weights that lie anywhere between two of its points are dithered by chance."""
