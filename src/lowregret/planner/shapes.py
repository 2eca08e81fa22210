"""From a model folder to a `ModelShape`: config.json first, safetensors headers to confirm it or in its place.

Guarantees: no weight is read; for the families of `families.py` the counts equal those of the module that transformers
builds; an unknown family is counted from the headers, and where there are none it is refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lowregret.errors import SpecError
from lowregret.planner.config import Config
from lowregret.planner.families import DEFAULT_TRUE, FAMILIES, Family
from lowregret.planner.headers import TensorHeader, read_headers, stored_format
from lowregret.planner.stored_shapes import shape_from_headers
from lowregret.specs.shape import MatrixKind, MatrixShape, ModelShape


def read_shape(folder: Path) -> ModelShape:
    """The shape of the model in a folder; a folder with nothing but config.json will do.

    Raises:
        SpecError: config.json is missing or lacks a field, contradicts the stored tensors, or the architecture is
            unknown and there are no safetensors to count.
    """
    config = Config.read(folder)
    headers = read_headers(folder)
    family = FAMILIES.get(config.model_type)
    if family is None:
        return shape_from_headers(config, headers)
    shape = shape_from_config(config, family)
    if "quantization_config" not in config.values:
        _confirm(shape, headers, config.file)
    return replace(shape, stored=stored_format(headers))


def shape_from_config(config: Config, family: Family) -> ModelShape:
    """Counts of a known family."""
    return _Builder(config, family).shape()


class _Builder:
    """Walks a family's layers once and counts matrices, biases and norms."""

    def __init__(self, config: Config, family: Family) -> None:
        self.config, self.family = config, family
        self.hidden = config.integer("hidden_size")
        self.num_layers = config.integer("num_hidden_layers")
        self.vocab = config.integer("vocab_size")
        self.heads = config.integer("num_attention_heads")
        self.kv_heads = config.integer("num_key_value_heads", default=self.heads)
        default_dim = family.head_dim or self.hidden // self.heads
        self.head_dim = config.integer("head_dim", default=default_dim)
        self.layers = tuple(range(self.num_layers))
        self.matrices: list[MatrixShape] = []
        self.other = 0
        self.norm_channels = 0

    def shape(self) -> ModelShape:
        tied = self.config.flag("tie_word_embeddings", self.family.tied)
        self._attention()
        self._mlps()
        self._norms()
        self._add("lm_head", "unembed", self.hidden, self.vocab, "lm_head", (), self.family.head_bias)
        return ModelShape(
            model_type=self.config.model_type,
            hidden_size=self.hidden,
            num_layers=self.num_layers,
            vocab_size=self.vocab,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            tied=tied,
            matrices=tuple(self.matrices),
            embedding_params=self.vocab * self.hidden,
            other_params=self.other,
            norm_channels=self.norm_channels,
            max_length=self.config.optional_integer("max_position_embeddings"),
            attention_windows=self._windows(),
        )

    def _attention(self) -> None:
        q, kv, prefix = self.heads * self.head_dim, self.kv_heads * self.head_dim, "model.layers.{layer}.self_attn."
        bias = self._rule(self.family.qkv_bias)
        inputs = {"q_proj": q, "k_proj": kv, "v_proj": kv}
        if self.family.attention == "fused":
            inputs = {"qkv_proj": q + 2 * kv}
        for name, d_out in inputs.items():
            self._add(name, "attention", self.hidden, d_out, prefix + name, self.layers, bias)
        out = self.family.out_name
        self._add(out, "attention", q, self.hidden, prefix + out, self.layers, self._rule(self.family.out_bias))

    def _mlps(self) -> None:
        sparse = self._sparse_layers()
        dense = tuple(layer for layer in self.layers if layer not in sparse)
        if dense:
            self._dense_mlp(dense)
        if sparse:
            self._expert_mlp(sparse)

    def _dense_mlp(self, layers: tuple[int, ...]) -> None:
        d, inner, prefix = self.hidden, self.config.integer("intermediate_size"), "model.layers.{layer}.mlp."
        first, last = self.family.plain_names
        matrices = {
            "gated": [("gate_proj", d, inner), ("up_proj", d, inner), ("down_proj", inner, d)],
            "fused": [("gate_up_proj", d, 2 * inner), ("down_proj", inner, d)],
            "plain": [(first, d, inner), (last, inner, d)],
        }[self.family.mlp]
        for name, d_in, d_out in matrices:
            self._add(name, "mlp", d_in, d_out, prefix + name, layers, self._rule(self.family.mlp_bias))

    def _expert_mlp(self, layers: tuple[int, ...]) -> None:
        """Experts as transformers holds them: gate and up in one tensor, so one adapter for both."""
        key = "moe_intermediate_size" if self.family.experts == "sparse" else "intermediate_size"
        d, inner = self.hidden, self.config.integer(key)
        experts = self.config.integer("num_local_experts", "num_experts")
        active = self.config.integer("num_experts_per_tok")
        prefix, router = "model.layers.{layer}.mlp.", self.family.router
        self._add(router, "router", d, experts, prefix + router, layers, self.family.router_bias)
        for name, d_in, d_out in (("gate_up_proj", d, 2 * inner), ("down_proj", inner, d)):
            path, bias = f"{prefix}experts.{name}", self.family.expert_bias
            self._add(name, "expert", d_in, d_out, path, layers, bias, experts=experts, active=active)

    def _sparse_layers(self) -> tuple[int, ...]:
        if self.family.experts == "none":
            return ()
        if self.family.experts == "all":
            return self.layers
        step, dense = self.config.integer("decoder_sparse_step", default=1), self.config.integers("mlp_only_layers")
        return tuple(layer for layer in self.layers if layer not in dense and (layer + 1) % step == 0)

    def _norms(self) -> None:
        width = self.family.norm_width * self.hidden
        self.other += self.num_layers * self.family.norms * width + width
        self.norm_channels = self.family.norms * self.hidden
        heads = (self.heads + self.kv_heads) * self.head_dim
        if self.family.qk_norm != "none":
            self.other += self.num_layers * (2 * self.head_dim if self.family.qk_norm == "head" else heads)
            self.norm_channels += heads
        if self.family.sinks:
            self.other += self.num_layers * self.heads

    def _windows(self) -> tuple[int | None, ...]:
        window = self.config.optional_integer("sliding_window")
        if window is None or not self.config.flag("use_sliding_window", True):
            return ()
        types = self.config.strings("layer_types")
        if types is None:
            pattern = {"gemma2": 2, "gpt_oss": 2, "gemma3_text": 6, "olmo3": 4}.get(self.config.model_type, 0)
            return tuple(None if pattern and (layer + 1) % pattern == 0 else window for layer in self.layers)
        return tuple(window if kind == "sliding_attention" else None for kind in types)

    def _rule(self, rule: bool | str) -> bool:
        if isinstance(rule, bool):
            return rule
        return self.config.flag(rule, (self.config.model_type, rule) in DEFAULT_TRUE)

    def _add(
        self,
        name: str,
        kind: MatrixKind,
        d_in: int,
        d_out: int,
        path: str,
        layers: tuple[int, ...],
        bias: bool,
        *,
        experts: int = 1,
        active: int = 1,
    ) -> None:
        matrix = MatrixShape(
            name=name,
            kind=kind,
            d_in=d_in,
            d_out=d_out,
            path=path,
            layers=layers,
            experts=experts,
            active_experts=active,
        )
        self.matrices.append(matrix)
        self.other += d_out * matrix.count if bias else 0


def _confirm(shape: ModelShape, headers: dict[str, TensorHeader], file: Path) -> None:
    """The stored matrices must be those that the config describes."""
    for matrix in shape.matrices:
        for layer in matrix.layers or (0,):
            name = matrix.path.format(layer=layer) + ".weight"
            stored = headers.get(name)
            if stored is not None and stored.shape != (matrix.d_out, matrix.d_in):
                raise SpecError(
                    f"{file}: says {matrix.d_out} x {matrix.d_in} for {name}, the safetensors file holds "
                    f"{' x '.join(map(str, stored.shape))}; take config and weights from the same model"
                )
