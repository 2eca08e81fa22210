"""The shape of a model of unknown family, counted from its safetensors headers."""

from __future__ import annotations

import re

from lowregret.errors import SpecError
from lowregret.planner.config import Config
from lowregret.planner.families import FAMILIES
from lowregret.planner.headers import TensorHeader, stored_format
from lowregret.specs.shape import MatrixKind, MatrixShape, ModelShape, matrix_kind

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
"""How the token embedding's name ends, over the families that transformers knows."""


def shape_from_headers(config: Config, headers: dict[str, TensorHeader]) -> ModelShape:
    """Every stored matrix whose name tells attention, MLP, expert or unembedding.

    Raises:
        SpecError: there are no headers, the weights are packed by a quantiser, or no matrix can be told.
    """
    _refuse_uncountable(config, headers)
    matrices = _matrices(config, headers)
    embedding = next((header for name, header in headers.items() if name.endswith(EMBEDDINGS)), None)
    if not matrices or embedding is None or len(embedding.shape) != 2:
        missing = "token embedding" if matrices else "attention or MLP matrix"
        raise SpecError(f"{config.file}: no {missing} among the stored tensors; {config.model_type!r} can't be counted")
    vocab, hidden = embedding.shape
    head = headers.get("lm_head.weight")
    heads = config.integer("num_attention_heads", "n_head", "num_heads")
    kv_heads = config.integer("num_key_value_heads", default=heads)
    head_dim = config.integer("head_dim", default=max(1, hidden // heads))
    stored = sum(header.num_values for header in headers.values())
    counted = sum(m.num_weights for m in matrices) + embedding.num_values + (0 if head is None else head.num_values)
    unembed = MatrixShape(name="lm_head", kind="unembed", d_in=hidden, d_out=vocab, path="lm_head")
    return ModelShape(
        model_type=config.model_type,
        hidden_size=hidden,
        num_layers=config.integer("num_hidden_layers", "n_layer", "num_layers"),
        vocab_size=vocab,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        tied=head is None,
        matrices=(*matrices, unembed),
        embedding_params=embedding.num_values,
        other_params=stored - counted,
        norm_channels=2 * hidden + (heads + kv_heads) * head_dim,  # at most: a layer may have fewer norms
        max_length=config.optional_integer("max_position_embeddings"),
        stored=stored_format(headers),
        source="safetensors headers",
    )


def _refuse_uncountable(config: Config, headers: dict[str, TensorHeader]) -> None:
    unknown = f"{config.file}: architecture {config.model_type!r} is not known"
    if not headers:
        raise SpecError(
            f"{unknown} ({', '.join(sorted(FAMILIES))}) and the folder has no .safetensors to count; add the weights"
        )
    if "quantization_config" in config.values:
        raise SpecError(f"{unknown} and its quantised weights don't show their shapes; give the unquantised model")


def _matrices(config: Config, headers: dict[str, TensorHeader]) -> list[MatrixShape]:
    grouped: dict[tuple[str, MatrixKind, int, int, str], set[tuple[int, int]]] = {}
    for name, header in headers.items():
        site = _site(name, header)
        if site is not None:
            key, place = site
            grouped.setdefault(key, set()).add(place)
    active = config.integer("num_experts_per_tok", default=1)
    return [_matrix(key, places, active) for key, places in grouped.items()]


def _site(name: str, header: TensorHeader) -> tuple[tuple[str, MatrixKind, int, int, str], tuple[int, int]] | None:
    """Key of the matrix that a stored tensor belongs to, and (layer, expert) where it stands."""
    path = name.removesuffix(".weight")
    kind = matrix_kind(path)
    fused = len(header.shape) == 3 and kind == "expert"
    if kind is None or not ((name.endswith(".weight") and len(header.shape) == 2) or fused):
        return None
    numbered = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", path)
    layer = int(numbered.group(1)) if numbered else 0
    expert = re.search(r"\.experts\.(\d+)\.", path)
    template = re.sub(r"\.(layers|h|blocks)\.\d+\.", r".\1.{layer}.", path, count=1)
    template = re.sub(r"\.experts\.\d+\.", ".experts.", template)
    d_out, d_in = header.shape[-2:]
    key = (template.rpartition(".")[2], kind, d_in, d_out, template)
    # A fused tensor holds all experts of its layer: they are counted by its first size.
    return key, (layer, header.shape[0] - 1 if fused else int(expert.group(1)) if expert else 0)


def _matrix(key: tuple[str, MatrixKind, int, int, str], places: set[tuple[int, int]], active: int) -> MatrixShape:
    name, kind, d_in, d_out, path = key
    experts = max(expert for _, expert in places) + 1
    return MatrixShape(
        name=name,
        kind=kind,
        d_in=d_in,
        d_out=d_out,
        path=path,
        layers=tuple(sorted({layer for layer, _ in places})),
        experts=experts,
        active_experts=min(active, experts) if kind == "expert" else 1,
    )
