"""The shape of a base model: every linear matrix that can be adapted, and the counts that follow from them.

Guarantees: matrices stand once each, so that adapter, FLOP and byte counts are sums over `ModelShape.matrices`; the
kinds are those by which `AdapterSpec.targets` selects. Read from files by `planner.shapes`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

MatrixKind = Literal["attention", "mlp", "unembed", "expert", "router"]

_ATTENTION = re.compile(r"attn|attention")
_MLP = re.compile(r"mlp|feed_forward|ffn|block_sparse_moe|experts")


def matrix_kind(path: str) -> MatrixKind | None:
    """Kind of a linear layer by its module name; None where it is no site (a score head, say). Heads are known by role.

    >>> matrix_kind("model.layers.0.self_attn.q_proj"), matrix_kind("model.layers.0.mlp.gate")
    ('attention', 'router')
    """
    parents = path.rpartition(".")[0]
    if path.endswith((".router", ".gate")) and _MLP.search(parents):
        return "router"
    if _ATTENTION.search(parents):
        return "attention"
    if parents.endswith("experts") or re.search(r"\.experts\.\d+\.", path):
        return "expert"
    if _MLP.search(parents) or re.search(r"\.(fc1|fc2)$", path):
        return "mlp"
    return None


@dataclass(frozen=True, kw_only=True)
class MatrixShape:
    """One linear matrix, in all layers that hold it.

    >>> q = MatrixShape(name="q_proj", kind="attention", d_in=64, d_out=64, path="layers.{layer}.q_proj", layers=(0, 1))
    >>> q.count, q.num_weights, q.adapter_params(8)
    (2, 8192, 2048)
    """

    name: str
    """Last part of the module name: `q_proj`, `lm_head`."""
    kind: MatrixKind
    d_in: int
    d_out: int
    path: str
    """Full module name, with `{layer}` where the layer's number stands."""
    layers: tuple[int, ...] = ()
    """Layers that hold the matrix; empty for the unembedding, which stands once."""
    experts: int = 1
    """Copies in each layer: the experts of a mixture, else 1."""
    active_experts: int = 1
    """Copies that one token passes through."""

    @property
    def count(self) -> int:
        """Copies in the whole model."""
        return max(1, len(self.layers)) * self.experts

    @property
    def active_count(self) -> int:
        """Copies that one token passes through, in the whole model."""
        return max(1, len(self.layers)) * self.active_experts

    @property
    def num_weights(self) -> int:
        return self.d_in * self.d_out * self.count

    def rank_at(self, rank: int) -> int:
        """Rank of one copy: an expert's is rank / active experts (paper), not / all experts; at least 1."""
        return max(1, rank // self.active_experts)

    def adapter_params(self, rank: int) -> int:
        """Parameters of A and B over all copies: r (d_in + d_out) each."""
        return self.rank_at(rank) * (self.d_in + self.d_out) * self.count


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A causal language model as counts.

    >>> head = MatrixShape(name="lm_head", kind="unembed", d_in=4, d_out=10, path="lm_head")
    >>> ModelShape(model_type="llama", hidden_size=4, num_layers=0, vocab_size=10, num_heads=1, num_kv_heads=1,
    ...     head_dim=4, tied=True, matrices=(head,), embedding_params=40, other_params=4).num_params
    44
    """

    model_type: str
    """`model_type` of config.json: the family, whatever the folder is called."""
    hidden_size: int
    num_layers: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tied: bool
    """The unembedding is the input embedding: one matrix, counted once."""
    matrices: tuple[MatrixShape, ...]
    """Every linear matrix, the unembedding and routers included, in model order."""
    embedding_params: int
    """Weights of the input embedding."""
    other_params: int
    """Norms, biases, sinks: everything that is neither a matrix above nor the input embedding."""
    norm_channels: int = 0
    """Channels that the norms of one layer read for one token, those of queries and keys included."""
    max_length: int | None = None
    """Longest context that the config states."""
    attention_windows: tuple[int | None, ...] = ()
    """Sliding window of each layer, None for full attention; empty where no layer has one."""
    stored: str | None = None
    """Number format of most weights in the model's files, as safetensors spells it (`BF16`, `F32`); None: not known."""
    source: str = "config.json"
    """Where the counts come from: `config.json`, `safetensors headers`, or `assumed`."""

    @property
    def approximate(self) -> bool:
        """True where the matrices were assumed, not read."""
        return self.source == "assumed"

    @property
    def unembed(self) -> MatrixShape | None:
        """The unembedding; None where the model has none that was found."""
        return next((matrix for matrix in self.matrices if matrix.kind == "unembed"), None)

    @property
    def num_params(self) -> int:
        """Parameters of the base, a tied head counted once."""
        matrices = sum(m.num_weights for m in self.matrices if not (m.kind == "unembed" and self.tied))
        return matrices + self.embedding_params + self.other_params

    @property
    def num_experts(self) -> int:
        """Experts of a layer; 1 for a dense model."""
        return max((m.experts for m in self.matrices), default=1)

    @property
    def active_experts(self) -> int:
        """Experts that one token passes through; 1 for a dense model."""
        return max((m.active_experts for m in self.matrices), default=1)
