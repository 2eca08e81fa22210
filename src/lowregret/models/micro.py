"""The micro bases by name: Llama-shaped models small enough to pretrain on a laptop (`training/pretrain.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowregret.folders import cache_folder

RECIPE = 2
"""Raised whenever the same name would give other weights: part of the folder's name."""


@dataclass(frozen=True, kw_only=True)
class MicroShape:
    """Size of a micro base; heads have 32 channels, the MLP is 2.5 times as wide.

    >>> MicroShape(width=128, layers=4).config(576)["num_attention_heads"]
    4
    """

    width: int
    layers: int

    def config(self, vocab_size: int) -> dict[str, Any]:
        """As config.json has it: an untied head, no grouped keys."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": self.width,
            "intermediate_size": self.width * 5 // 2,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.width // 32,
            "num_key_value_heads": self.width // 32,
            "vocab_size": vocab_size,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }


BASES = {
    "nano": MicroShape(width=64, layers=2),
    "micro": MicroShape(width=128, layers=4),
    "micro-max3": MicroShape(width=128, layers=4),
    "micro-64": MicroShape(width=64, layers=4),
    "micro-256": MicroShape(width=256, layers=4),
}
"""`micro` and its narrower and wider siblings for studies of width; `nano` for studies of capacity; `micro-max3`, which
has seen more of that task, for RL."""


def base_folder(name: str) -> Path:
    """Where a base lies once it is made."""
    return cache_folder() / "bases" / f"{name}-recipe{RECIPE}"
