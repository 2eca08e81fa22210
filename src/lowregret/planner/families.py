"""What config.json leaves unsaid: module names, biases, norms and defaults of each family that transformers builds.

One row a `model_type`. `tests/planner/test_shapes.py` builds each family on the meta device and compares every count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the layers of one `model_type` are built.

    >>> Family(head_dim=256, tied=True).mlp
    'gated'
    """

    attention: Literal["separate", "fused"] = "separate"
    """q_proj, k_proj and v_proj, or one qkv_proj."""
    out_name: str = "o_proj"
    """Name of the attention's output projection."""
    mlp: Literal["gated", "fused", "plain"] = "gated"
    """gate_proj, up_proj, down_proj; gate_up_proj, down_proj; or two matrices without a gate."""
    plain_names: tuple[str, str] = ("fc1", "fc2")
    """Names of the two matrices of a plain MLP."""
    experts: Literal["none", "all", "sparse"] = "none"
    """Mixture of experts in no layer, in every layer, or where `decoder_sparse_step` and `mlp_only_layers` say."""
    router: str = "gate"
    router_bias: bool = False
    expert_bias: bool = False
    qkv_bias: bool | str = "attention_bias"
    """A fact of the family, or the config key that says so (absent: no bias)."""
    out_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = False
    head_bias: bool = False
    norms: int = 2
    """Norms with weights in each layer, those of queries and keys apart."""
    norm_width: int = 1
    """Vectors of a norm: 1 weight; 2 weight and bias; 0 none."""
    qk_norm: Literal["none", "head", "full"] = "none"
    """Norms of queries and keys: over one head's channels, or over all of them."""
    sinks: bool = False
    """One learned attention sink a head."""
    head_dim: int | None = None
    """Channels of a head where the config does not say; None: hidden size / heads."""
    tied: bool = False
    """Whether the unembedding is tied where the config does not say."""


FAMILIES: dict[str, Family] = {
    "llama": Family(mlp_bias="mlp_bias"),
    "granite": Family(mlp_bias="mlp_bias"),
    "mistral": Family(qkv_bias=False, out_bias=False),
    "mixtral": Family(qkv_bias=False, out_bias=False, experts="all"),
    "qwen2": Family(qkv_bias=True, out_bias=False),
    "qwen3": Family(qk_norm="head", head_dim=128),
    "qwen3_moe": Family(qk_norm="head", experts="sparse"),
    "gemma": Family(head_dim=256, tied=True),
    "gemma2": Family(head_dim=256, tied=True, norms=4),
    "gemma3_text": Family(head_dim=256, tied=True, norms=4, qk_norm="head"),
    "phi": Family(
        out_name="dense",
        mlp="plain",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        head_bias=True,
        norms=1,
        norm_width=2,
    ),
    "phi3": Family(attention="fused", mlp="fused", qkv_bias=False, out_bias=False),
    "olmo": Family(norm_width=0),
    "olmo2": Family(qk_norm="full"),
    "olmo3": Family(qk_norm="full"),
    "olmoe": Family(qk_norm="full", experts="all"),
    "smollm3": Family(mlp_bias="mlp_bias", tied=True),
    "starcoder2": Family(
        mlp="plain",
        plain_names=("c_fc", "c_proj"),
        qkv_bias="use_bias",
        out_bias="use_bias",
        mlp_bias="use_bias",
        norm_width=2,
        tied=True,
    ),
    "gpt_oss": Family(experts="all", router="router", router_bias=True, expert_bias=True, sinks=True, head_dim=64),
}
"""By `model_type`."""

DEFAULT_TRUE = frozenset({("starcoder2", "use_bias"), ("gpt_oss", "attention_bias")})
"""(model_type, key) whose absence from config.json means true."""
