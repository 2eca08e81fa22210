"""Which base model, and where from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A base model; its weights are read from safetensors or GGUF only and never written to.

    >>> ModelSpec(source="smollm2-135m").source
    'smollm2-135m'
    """

    source: str
    """Hub id (`meta-llama/Llama-3.2-1B`), local folder, `.gguf` file, or a packaged name (`smollm2-135m`)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model. None is the hub's default branch."""
