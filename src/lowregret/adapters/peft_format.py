"""Reads and writes adapters in PEFT's folder layout: `adapter_config.json` and `adapter_model.safetensors`.

No dependence on PEFT; a test loads what is written here with PEFT and compares logits. Masters are written in fp32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.inject import Kind
from lowregret.errors import ExportError
from lowregret.specs import AdapterSpec

PREFIX = "base_model.model."
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class StoredAdapter:
    """An adapter as read from a folder.

    >>> StoredAdapter(rank=1, alpha=32.0, a_of={}, b_of={}).rank
    1
    """

    rank: int
    alpha: float
    a_of: Mapping[str, Tensor]
    """A by module name, [rank, d_in]."""
    b_of: Mapping[str, Tensor]
    """B by module name, [d_out, rank]."""
    base_model: str = ""
    """What the folder says its base is; empty where it does not say."""


def write_adapter(
    bank: AdapterBank, slot: str, folder: Path, *, base_model: str, dtype: torch.dtype = torch.float32
) -> None:
    """Write a slot's masters as a PEFT folder.

    Args:
        base_model: goes into `base_model_name_or_path`, so that PEFT can find the base.
        dtype: of the stored A and B.
    """
    weights = bank.weights[slot]
    tensors: dict[str, Tensor] = {}
    for site, a_RD in weights.a_of.items():
        tensors[f"{PREFIX}{site}.lora_A.weight"] = a_RD.detach().to("cpu", dtype).contiguous()
        tensors[f"{PREFIX}{site}.lora_B.weight"] = weights.b_of[site].detach().to("cpu", dtype).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = _config(weights.spec, target_modules(bank.kinds, tuple(weights.a_of)), base_model)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_adapter(folder: Path) -> StoredAdapter:
    """Read a PEFT LoRA folder.

    Raises:
        ExportError: files are missing or torn, or the adapter has parts that plain LoRA does not have.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise ExportError(
            f"{folder} is no readable PEFT adapter ({error}); it needs {CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from error
    foreign = [key for key in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern") if config.get(key)]
    if config.get("peft_type") != "LORA" or foreign or config.get("bias", "none") != "none":
        what = ", ".join(foreign) or f"peft_type {config.get('peft_type')}, bias {config.get('bias')}"
        raise ExportError(f"{folder / CONFIG_FILE}: only plain LoRA can be read, this one has {what}")
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    if config.get("use_rslora"):
        alpha *= rank**0.5  # rsLoRA scales by alpha / sqrt(r)
    a_of: dict[str, Tensor] = {}
    b_of: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        site, _, part = key.removeprefix(PREFIX).rpartition(".lora_")
        if part == "A.weight":
            a_of[site] = tensor
        elif part == "B.weight":
            b_of[site] = tensor
        else:
            raise ExportError(f"{folder / WEIGHTS_FILE}: tensor {key!r} is not a LoRA weight")
    base_model = str(config.get("base_model_name_or_path") or "")
    return StoredAdapter(rank=rank, alpha=alpha, a_of=a_of, b_of=b_of, base_model=base_model)


def join_stored(bank: AdapterBank, slot: str, stored: StoredAdapter) -> None:
    """Add a stored adapter to a bank as a slot.

    Raises:
        SpecError: a module of the adapter is no linear layer of the model.
        ExportError: a matrix has another shape than the model's layer.
    """
    bank.join(slot, AdapterSpec(rank=stored.rank, alpha=stored.alpha, targets=tuple(stored.a_of)))
    weights = bank.weights[slot]
    for site, a_RD in stored.a_of.items():
        if a_RD.shape != weights.a_of[site].shape or stored.b_of[site].shape != weights.b_of[site].shape:
            raise ExportError(
                f"adapter matrix of {site} does not fit the model's layer; use the base it was trained on"
            )
        weights.a_of[site].copy_(a_RD)
        weights.b_of[site].copy_(stored.b_of[site])
    bank.publish(slot)


def target_modules(kinds: Mapping[str, Kind], sites: tuple[str, ...]) -> list[str]:
    """PEFT's `target_modules`: leaf names where every layer of that name is adapted, else full names."""
    chosen = set(sites)
    names: list[str] = []
    for leaf in dict.fromkeys(site.rsplit(".", 1)[-1] for site in sites):
        having = [name for name in kinds if name == leaf or name.endswith("." + leaf)]
        names += [leaf] if set(having) <= chosen else [name for name in having if name in chosen]
    return names


def _config(spec: AdapterSpec, modules: list[str], base_model: str) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
