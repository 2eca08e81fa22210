"""Configurations for other tools say what the plan says; those for installed tools are run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import yaml
from trl.trainer.sft_config import SFTConfig

from lowregret.errors import SpecError
from lowregret.planner.capacity import adapter_params
from lowregret.planner.emit import TOOLS, emit
from lowregret.planner.recommend import STATED_MACHINE, stated_facts
from lowregret.planner.resolve import resolve
from lowregret.planner.shapes import read_shape
from lowregret.planner.targets import select
from lowregret.specs import (
    AdapterSpec,
    DataSpec,
    FullSpec,
    HardwareSpec,
    ModelShape,
    ModelSpec,
    OptimSpec,
    ResolvedPlan,
    RunSpec,
    ScheduleSpec,
    SlotSpec,
    TrainSpec,
)
from planner.model_configs import PUBLISHED

TRL_SPELLING = pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
"""TRL's own default still has the old name, so its config warns whatever we say."""


def shape_of(folder: Path, name: str = "SmolLM2-135M") -> ModelShape:
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name]))
    return read_shape(folder)


def plan_of(shape: ModelShape, weights: AdapterSpec | FullSpec, **optim: Any) -> ResolvedPlan:
    spec = RunSpec(
        model=ModelSpec(source="owner/model"),
        data=DataSpec(source="data.jsonl", max_length=1024),
        slots=(SlotSpec(name="a", weights=weights, optim=OptimSpec(lr=3e-4, **optim), data_seed=3),),
        train=TrainSpec(steps=200, batch_size=12, schedule=ScheduleSpec(kind="linear", warmup=5)),
        hardware=HardwareSpec(dtype="fp32"),
    )
    return resolve(spec, shape=shape, facts=stated_facts(10**6, longest=512), hardware=STATED_MACHINE)


def executed(text: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(compile(text, "emitted.py", "exec"), namespace)
    return namespace


def test_peft_builds_an_adapter_of_the_planned_size(tmp_path: Path) -> None:
    shape = shape_of(tmp_path)
    weights = AdapterSpec(rank=4, alpha=16.0, targets=("mlp", "q_proj"))
    config = executed(emit(plan_of(shape, weights), shape, "peft"))["peft_config"]
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 16, 0.0)
    made = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(made)
        with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
            adapted = peft.get_peft_model(module, config)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == adapter_params(select(shape, weights.targets, unembed=False), 4)


@TRL_SPELLING
def test_trl_takes_the_plan(tmp_path: Path) -> None:
    shape = shape_of(tmp_path)
    names = executed(emit(plan_of(shape, AdapterSpec(rank=8), weight_decay=0.01, clip_norm=1.0), shape, "trl"))
    args = names["args"]
    assert isinstance(args, SFTConfig)
    assert (args.learning_rate, args.max_steps, args.warmup_steps) == (3e-4, 200, 5)
    assert args.lr_scheduler_type == "linear"
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 12
    assert (args.adam_epsilon, args.weight_decay, args.max_grad_norm) == (1e-12, 0.01, 1.0)
    assert (args.bf16, args.max_length, args.seed) == (False, 1024, 3)
    assert not args.activation_checkpointing
    assert names["peft_config"].r == 8


def test_yaml_tools_say_the_same(tmp_path: Path) -> None:
    shape = shape_of(tmp_path)
    plan = plan_of(shape, AdapterSpec(rank=8, unembed=True))
    axolotl = yaml.safe_load(emit(plan, shape, "axolotl"))
    factory = yaml.safe_load(emit(plan, shape, "llamafactory"))
    tune = yaml.safe_load(emit(plan, shape, "torchtune"))
    assert axolotl["lora_r"] == factory["lora_rank"] == tune["model"]["lora_rank"] == 8
    assert axolotl["lora_alpha"] == factory["lora_alpha"] == tune["model"]["lora_alpha"] == 32
    assert axolotl["learning_rate"] == factory["learning_rate"] == tune["optimizer"]["lr"] == 3e-4
    assert axolotl["adam_epsilon"] == factory["adam_epsilon"] == tune["optimizer"]["eps"] == 1e-12
    assert axolotl["micro_batch_size"] * axolotl["gradient_accumulation_steps"] == 12
    assert factory["per_device_train_batch_size"] * factory["gradient_accumulation_steps"] == 12
    assert tune["batch_size"] * tune["gradient_accumulation_steps"] == 12
    assert axolotl["max_steps"] == factory["max_steps"] == tune["max_steps_per_epoch"] == 200
    assert "lm_head" in axolotl["lora_target_modules"]
    assert factory["lora_target"].split(",") == axolotl["lora_target_modules"]
    assert tune["model"]["apply_lora_to_output"]
    assert tune["model"]["lora_attn_modules"] == ["q_proj", "k_proj", "v_proj", "output_proj"]


def test_unsloth_is_python_with_the_plan_s_numbers(tmp_path: Path) -> None:
    shape = shape_of(tmp_path)
    text = emit(plan_of(shape, AdapterSpec(rank=8)), shape, "unsloth")
    compile(text, "emitted.py", "exec")
    for line in ("r=8,", "lora_alpha=32,", "learning_rate=0.0003,", "max_seq_length=1024,", "random_state=0,"):
        assert f"    {line}\n" in text


@TRL_SPELLING
def test_a_constant_schedule_keeps_its_warm_up(tmp_path: Path) -> None:
    shape = shape_of(tmp_path)
    plan = plan_of(shape, AdapterSpec(rank=8))
    for warmup, name in ((0, "constant"), (5, "constant_with_warmup")):
        train = replace(plan.spec.train, schedule=ScheduleSpec(warmup=warmup))
        constant = replace(plan, spec=replace(plan.spec, train=train))
        assert executed(emit(constant, shape, "trl"))["args"].lr_scheduler_type == name


@pytest.mark.parametrize("tool", TOOLS)
def test_what_a_tool_cannot_say_is_refused(tool: str, tmp_path: Path) -> None:
    shape = shape_of(tmp_path)
    plan = plan_of(shape, AdapterSpec(rank=8))
    with pytest.raises(SpecError, match="lr_b apart"):
        emit(plan_of(shape, AdapterSpec(rank=8), lr_b=1e-3), shape, tool)
    with pytest.raises(SpecError, match="initialisation"):
        emit(plan_of(shape, AdapterSpec(rank=8, init_scale=2.0)), shape, tool)
    decay = replace(plan.spec.train, schedule=ScheduleSpec(kind="cosine", final=0.1))
    with pytest.raises(SpecError, match="decays to 0"):
        emit(replace(plan, spec=replace(plan.spec, train=decay)), shape, tool)
    with pytest.raises(SpecError, match="no adapter 'b'"):
        emit(plan, shape, tool, slot="b")
    with pytest.raises(SpecError, match="no adapter to write"):
        emit(plan_of(shape, FullSpec()), shape, tool)


def test_experts_strange_modules_and_strange_tools_are_refused(tmp_path: Path) -> None:
    shape = shape_of(tmp_path)
    plan = plan_of(shape, AdapterSpec(rank=8))
    with pytest.raises(SpecError, match="'keras' is not known"):
        emit(plan, shape, "keras")
    phi = shape_of(tmp_path, "Phi-2")
    phi_plan = plan_of(phi, AdapterSpec(rank=8))
    with pytest.raises(SpecError, match="torchtune has no module 'dense'"):
        emit(phi_plan, phi, "torchtune")
    shape = shape_of(tmp_path, "gpt-oss-20b")
    huge = replace(STATED_MACHINE, memory_bytes=1 << 42)
    plan = resolve(plan.spec, shape=shape, facts=plan.facts, hardware=huge)
    with pytest.raises(SpecError, match="per-expert ranks"):
        emit(plan, shape, "peft")
