"""Loads a model's weights from a local folder: safetensors only, model code from transformers only."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.full import FullParameters
from lowregret.errors import ModelError
from lowregret.models.attention import register
from lowregret.models.causal_lm import CausalLM
from lowregret.models.locate import ModelFolder
from lowregret.specs import FullSpec

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load_module(folder: ModelFolder, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The transformers module, in eval mode, with packed attention.

    Raises:
        ModelError: no safetensors, an architecture that transformers does not know or that needs code from a hub.
    """
    import transformers

    if not any(folder.path.glob("*.safetensors")):
        raise ModelError(f"model folder {folder.path} has no .safetensors file; weights are read from safetensors only")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder.path,
            dtype=dtype,
            attn_implementation=register(),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    except ValueError as error:
        raise ModelError(f"model {folder.name} can't be loaded: {str(error).splitlines()[0]}") from error
    return prepare_module(cast(nn.Module, model).to(device))


def load_start(folder: ModelFolder, spec: FullSpec, *, device: torch.device) -> nn.Module:
    """The fp32 weights that a full fine-tuning starts from.

    Raises:
        ModelError: see `load_module`.
    """
    dtype = torch.bfloat16 if spec.start == "bf16" else torch.float32
    return cast_parameters(load_module(folder, dtype=dtype, device=device), torch.float32)


SEPARABLE = {"full_attention", "sliding_attention", "chunked_attention", "mlp", "moe"}
"""Kinds of layer, as configs name them, in which tokens meet in attention alone."""
MIXES = "documents that are packed side by side would leak into each other, so it can't train packed"


def prepare_module(model: nn.Module) -> nn.Module:
    """Eval mode, packed attention, no dropout: for a module built or loaded elsewhere (tests build theirs).

    Raises:
        ModelError: its attention does not go through transformers' attention interface, or tokens meet outside it.
    """
    if not getattr(model, "_supports_attention_backend", False) and not getattr(model, "_supports_sdpa", False):
        raise ModelError(
            f"{type(model).__name__} does not use transformers' attention interface; it can't train packed"
        )
    config = cast(Any, model).config
    if others := sorted(set(getattr(config, "layer_types", None) or ()) - SEPARABLE):
        raise ModelError(f"{type(model).__name__} has {', '.join(others)} layers; {MIXES}")
    if getattr(model, "_is_stateful", False):
        raise ModelError(f"{type(model).__name__} carries a state from token to token; {MIXES}")
    cast(Any, model).set_attn_implementation(register())
    return model.eval()


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Bring the parameters to `dtype`, and leave the buffers: rotary frequencies in bf16 shift every position."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def head_name(model: nn.Module) -> str:
    """Module name of the unembedding, such as `lm_head`.

    Raises:
        ModelError: the model has none.
    """
    head = cast(Any, model).get_output_embeddings()
    for name, module in model.named_modules():
        if module is head:
            return name
    raise ModelError(f"{type(model).__name__} has no unembedding; only causal language models can be trained")


def with_bank(model: nn.Module, *, master_dtype: torch.dtype = torch.float32) -> tuple[CausalLM, AdapterBank]:
    """A frozen base with an empty bank."""
    bank = AdapterBank(model, head_name=head_name(model), master_dtype=master_dtype)
    return CausalLM(model, trainable=bank), bank


def with_full(
    model: nn.Module, spec: FullSpec, *, slot: str = "full", masters: dict[str, Tensor] | None = None
) -> tuple[CausalLM, FullParameters]:
    """A model of its own, all (or the matched) weights trained."""
    full = FullParameters(model, spec, head_name=head_name(model), slot=slot, masters=masters)
    return CausalLM(model, trainable=full), full
