"""Promise: parameter and byte counts equal enumeration on built models of every supported family, and the plan's
arithmetic needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from torch import nn

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.peft_format import write_adapter
from lowregret.models.load import head_name, prepare_module
from lowregret.planner.capacity import adapter_params
from lowregret.planner.families import FAMILIES
from lowregret.planner.headers import read_headers
from lowregret.planner.shapes import read_shape
from lowregret.planner.targets import select
from lowregret.specs import AdapterSpec

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def config_of(model_type: str) -> transformers.PreTrainedConfig:
    rest = EXPERTS if FAMILIES[model_type].experts != "none" else {}
    return transformers.AutoConfig.for_model(model_type, **SMALL, **rest)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_s_parameters_are_counted_exactly(model_type: str, tmp_path: Path) -> None:
    config = config_of(model_type)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        module = cast(nn.Module, transformers.AutoModelForCausalLM.from_config(config))
    assert read_shape(tmp_path).num_params == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("model_type", [name for name, family in FAMILIES.items() if family.experts == "none"])
def test_the_bank_s_masters_and_the_adapter_s_file_have_the_planned_size(model_type: str, tmp_path: Path) -> None:
    config = config_of(model_type)
    config.save_pretrained(tmp_path)
    # Without the packed attention, which some families' code lacks; sizes don't depend on it.
    module = cast(Any, transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
    bank = AdapterBank(prepare_module(module), head_name=head_name(module))
    spec = AdapterSpec(rank=5, unembed=True)
    bank.join("s", spec)
    shape = read_shape(tmp_path)
    planned = adapter_params(select(shape, spec.targets, unembed=True), spec.rank)
    assert bank.weights["s"].num_parameters == planned
    write_adapter(bank, "s", tmp_path / "adapter", base_model="m")
    stored = read_headers(tmp_path / "adapter").values()
    assert sum(4 * header.num_values for header in stored) == 4 * planned


def test_a_70b_plan_is_made_without_torch_in_two_seconds(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    script = (
        "import sys, time\n"
        "start = time.monotonic()\n"
        "from lowregret.planner.describe import plan_mapping\n"
        "from lowregret.planner.recommend import STATED_MACHINE, recommend\n"
        "from lowregret.planner.shapes import read_shape\n"
        "from dataclasses import replace\n"
        "machine = replace(STATED_MACHINE, memory_bytes=1 << 42)\n"
        "shape = read_shape(__import__('pathlib').Path(sys.argv[1]))\n"
        "plan = recommend(model='m', shape=shape, tokens=10**9, num_examples=10**6, hardware=machine)\n"
        "plan_mapping(plan, shape, memory_bytes=1 << 42)\n"
        "assert time.monotonic() - start < 2, time.monotonic() - start\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'a plan needs the standard library only'\n"
        "assert shape.num_params == 70_553_706_496, shape.num_params\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
