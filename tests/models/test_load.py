"""What can't be packed is refused by name before it trains."""

from __future__ import annotations

import pytest
import transformers

from lowregret.errors import ModelError
from lowregret.models.load import prepare_module

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.mark.parametrize(
    ("family", "more", "said"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "has conv layers"),
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}, "has linear_attention layers"),
        ("falcon_h1", {}, "has hybrid layers"),
    ],
)
def test_models_whose_tokens_meet_outside_attention_are_refused(family: str, more: dict[str, object], said: str):
    config = transformers.AutoConfig.for_model(family, **SMALL, **more)
    with pytest.raises(ModelError, match=f"{said}; documents that are packed"):
        prepare_module(transformers.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "mixtral"])
def test_those_that_meet_in_attention_alone_are_not(family: str):
    config = transformers.AutoConfig.for_model(family, **SMALL)
    assert not prepare_module(transformers.AutoModelForCausalLM.from_config(config)).training
