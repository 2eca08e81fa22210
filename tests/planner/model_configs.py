"""config.json of published models, as far as shapes depend on it."""

from __future__ import annotations

Config = dict[str, object]


def _config(
    model_type: str, hidden: int, inner: int, layers: int, heads: tuple[int, int], vocabulary: int, **rest: object
) -> Config:
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        **rest,
    }


PUBLISHED: dict[str, Config] = {
    "Llama-3.1-8B": _config("llama", 4096, 14336, 32, (32, 8), 128256, tie_word_embeddings=False),
    "Llama-3.1-70B": _config("llama", 8192, 28672, 80, (64, 8), 128256, tie_word_embeddings=False),
    "Llama-3.2-1B": _config("llama", 2048, 8192, 16, (32, 8), 128256, head_dim=64, tie_word_embeddings=True),
    "SmolLM2-135M": _config("llama", 576, 1536, 30, (9, 3), 49152, tie_word_embeddings=True),
    "Qwen2.5-0.5B": _config("qwen2", 896, 4864, 24, (14, 2), 151936, tie_word_embeddings=True),
    "Qwen3-8B": _config("qwen3", 4096, 12288, 36, (32, 8), 151936, head_dim=128, tie_word_embeddings=False),
    "Qwen3-30B-A3B": _config(
        "qwen3_moe",
        2048,
        6144,
        48,
        (32, 4),
        151936,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        decoder_sparse_step=1,
        tie_word_embeddings=False,
    ),
    "Mistral-7B": _config("mistral", 4096, 14336, 32, (32, 8), 32768, tie_word_embeddings=False),
    "Mixtral-8x7B": _config("mixtral", 4096, 14336, 32, (32, 8), 32000, num_local_experts=8, num_experts_per_tok=2),
    "Gemma-2B": _config("gemma", 2048, 16384, 18, (8, 1), 256000, head_dim=256),
    "Gemma-2-2B": _config("gemma2", 2304, 9216, 26, (8, 4), 256000, head_dim=256),
    "Gemma-3-1B": _config("gemma3_text", 1152, 6912, 26, (4, 1), 262144, head_dim=256),
    "Phi-2": _config("phi", 2560, 10240, 32, (32, 32), 51200, partial_rotary_factor=0.4),
    "Phi-3-mini": _config("phi3", 3072, 8192, 32, (32, 32), 32064, pad_token_id=0),
    "OLMo-1B": _config("olmo", 2048, 8192, 16, (16, 16), 50304, tie_word_embeddings=True),
    "OLMo-2-7B": _config("olmo2", 4096, 11008, 32, (32, 32), 100352),
    "SmolLM3-3B": _config("smollm3", 2048, 11008, 36, (16, 4), 128256, pad_token_id=0),
    "gpt-oss-20b": _config(
        "gpt_oss",
        2880,
        2880,
        24,
        (64, 8),
        201088,
        head_dim=64,
        num_local_experts=32,
        num_experts_per_tok=4,
        tie_word_embeddings=False,
    ),
}
"""By the model's name."""
