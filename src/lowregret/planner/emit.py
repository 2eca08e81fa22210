"""A plan as the configuration of another tool: what it would take to run the same adapter there.

Guarantee: rank, alpha, targets, learning rate, schedule, steps, batch and optimizer settings are the plan's. What the
tool can't express is refused, never left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lowregret.errors import SpecError
from lowregret.planner.targets import GROUPS, select
from lowregret.specs.adapter import AdapterSpec
from lowregret.specs.plan import ResolvedPlan
from lowregret.specs.run import SlotSpec
from lowregret.specs.shape import ModelShape

Value = str | int | float | bool | tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One adapter's run in the words that most trainers share.

    >>> sorted(Recipe.__dataclass_fields__)[:3]
    ['adam_epsilon', 'alpha', 'attention_only_names']
    """

    model: str
    data: str
    rank: int
    alpha: float
    seed: int
    targets: tuple[str, ...]
    """Module names, the unembedding included."""
    attention_only_names: tuple[str, ...]
    """Those of them that stand in attention."""
    has_mlp: bool
    unembed: bool
    trainer: Mapping[str, Value]
    """Arguments of the Hugging Face trainer."""
    adam_epsilon: float
    max_length: int
    bf16: bool


def emit(plan: ResolvedPlan, shape: ModelShape, tool: str, *, slot: str | None = None) -> str:
    """The configuration text for `trl`, `peft`, `axolotl`, `llamafactory`, `unsloth` or `torchtune`.

    Args:
        plan: resolved.
        shape: of the base.
        tool: which.
        slot: name of the adapter; None: the first.

    Raises:
        SpecError: the tool is not known, there is no such adapter, or the tool can't express the plan.
    """
    if tool not in TOOLS:
        raise SpecError(f"--emit: {tool!r} is not known; give {', '.join(TOOLS)}")
    if plan.spec.task != "sft" and tool != "peft":
        raise SpecError(f"--emit: {tool} is written for task sft, the plan is for {plan.spec.task}; use --emit peft")
    return TOOLS[tool](_recipe(plan, shape, _adapter_slot(plan, slot), tool))


def _adapter_slot(plan: ResolvedPlan, name: str | None) -> SlotSpec:
    adapters = {slot.name: slot for slot in plan.spec.slots if isinstance(slot.weights, AdapterSpec)}
    if not adapters:
        raise SpecError("--emit: the plan has no adapter to write; give a rank (--rank 8)")
    if name is not None and name not in adapters:
        raise SpecError(f"--emit: the plan has no adapter {name!r}; it has {', '.join(adapters)}")
    return next(iter(adapters.values())) if name is None else adapters[name]


def _recipe(plan: ResolvedPlan, shape: ModelShape, slot: SlotSpec, tool: str) -> Recipe:
    weights, optim = slot.weights, slot.optim
    assert isinstance(weights, AdapterSpec)
    matrices = select(shape, weights.targets, unembed=weights.unembed)
    _refuse_inexpressible(slot, plan, shape, tool)
    explicit = [target for target in weights.targets if target not in GROUPS]
    grouped = select(shape, [t for t in weights.targets if t in GROUPS], unembed=weights.unembed)
    names = tuple(dict.fromkeys([*(matrix.name for matrix in grouped), *explicit]))
    batch, longest = plan.spec.train.batch_size, plan.facts.longest
    micro = _micro_batch(batch, plan.tokens_per_microbatch // max(1, longest))
    schedule = plan.spec.train.schedule
    constant = "constant_with_warmup" if schedule.warmup else "constant"
    trainer: dict[str, Value] = {
        "learning_rate": optim.lr,
        "lr_scheduler_type": constant if schedule.kind == "constant" else schedule.kind,
        "warmup_steps": schedule.warmup,
        "max_steps": plan.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch // micro,
        "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1],
        "adam_epsilon": optim.eps,
        "weight_decay": optim.weight_decay,
        "max_grad_norm": optim.clip_norm or 0.0,
        "bf16": plan.dtype == "bf16",
        "gradient_checkpointing": plan.spec.hardware.activation_checkpointing,
        "seed": slot.data_seed,
    }
    return Recipe(
        model=plan.spec.model.source,
        data=plan.spec.data.source,
        rank=weights.rank,
        alpha=weights.alpha,
        seed=weights.init_seed,
        targets=names,
        attention_only_names=tuple(dict.fromkeys(m.name for m in matrices if m.kind == "attention")),
        has_mlp=any(m.kind == "mlp" for m in matrices),
        unembed=any(m.kind == "unembed" for m in matrices),
        trainer=trainer,
        adam_epsilon=optim.eps,
        max_length=plan.spec.data.max_length,
        bf16=plan.dtype == "bf16",
    )


def _refuse_inexpressible(slot: SlotSpec, plan: ResolvedPlan, shape: ModelShape, tool: str) -> None:
    weights, optim = slot.weights, slot.optim
    assert isinstance(weights, AdapterSpec)
    if any(m.kind == "expert" for m in select(shape, weights.targets, unembed=weights.unembed)):
        raise SpecError(f"--emit: {tool} has no per-expert ranks (rank / active experts); use --targets attention")
    different = {"lr_b": optim.lr_b, "eps_b": optim.eps_b, "weight_decay_b": optim.weight_decay_b}
    for name, value in different.items():
        if value is not None:
            raise SpecError(f"--emit: {tool} can't set {name} apart from A's; leave slots.{slot.name}.optim.{name} out")
    if weights.init_scale != 1.0:
        raise SpecError(
            f"--emit: {tool} can't scale the initialisation; leave slots.{slot.name}.weights.init_scale at 1"
        )
    if plan.spec.train.schedule.kind != "constant" and plan.spec.train.schedule.final != 0.0:
        raise SpecError(f"--emit: {tool} decays to 0; leave train.schedule.final at 0")


def _micro_batch(batch: int, most: int) -> int:
    """Largest divisor of the batch that is at most `most`, at least 1."""
    return max((size for size in range(1, batch + 1) if batch % size == 0 and size <= most), default=1)


def _lora_config(recipe: Recipe) -> str:
    return _call(
        "LoraConfig",
        {
            "r": recipe.rank,
            "lora_alpha": _whole(recipe.alpha),
            "target_modules": recipe.targets,
            "lora_dropout": 0.0,
            "bias": "none",
            "task_type": "CAUSAL_LM",
        },
    )


def _peft(recipe: Recipe) -> str:
    return f"from peft import LoraConfig\n\npeft_config = {_lora_config(recipe)}\n"


def _trl(recipe: Recipe) -> str:
    arguments = {"output_dir": "output", **recipe.trainer, "max_length": recipe.max_length}
    return (
        "from peft import LoraConfig\nfrom trl import SFTConfig\n\n"
        f"# SFTTrainer(model={json.dumps(recipe.model)}, args=args, peft_config=peft_config, train_dataset=...)\n"
        "# Loss on completions only: prompt and completion columns, or assistant_only_loss=True with messages.\n"
        f"peft_config = {_lora_config(recipe)}\n\nargs = {_call('SFTConfig', arguments)}\n"
    )


def _unsloth(recipe: Recipe) -> str:
    load = {"model_name": recipe.model, "max_seq_length": recipe.max_length, "load_in_4bit": False}
    adapter = {
        "r": recipe.rank,
        "lora_alpha": _whole(recipe.alpha),
        "target_modules": recipe.targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "random_state": recipe.seed,
    }
    arguments = {"output_dir": "output", **recipe.trainer, "max_length": recipe.max_length}
    return (
        "from unsloth import FastLanguageModel\nfrom trl import SFTConfig\n\n"
        f"model, tokenizer = {_call('FastLanguageModel.from_pretrained', load)}\n"
        f"model = {_call('FastLanguageModel.get_peft_model', adapter, first='model')}\n\n"
        f"args = {_call('SFTConfig', arguments)}\n"
    )


def _axolotl(recipe: Recipe) -> str:
    trainer = dict(recipe.trainer)
    renamed = {
        "lr_scheduler": trainer.pop("lr_scheduler_type"),
        "micro_batch_size": trainer.pop("per_device_train_batch_size"),
    }
    fields: dict[str, Value] = {
        "base_model": recipe.model,
        "adapter": "lora",
        "lora_r": recipe.rank,
        "lora_alpha": _whole(recipe.alpha),
        "lora_dropout": 0.0,
        "lora_target_modules": recipe.targets,
        "sequence_len": recipe.max_length,
        "train_on_inputs": False,
        "optimizer": "adamw_torch",
        **renamed,
        **trainer,
        "output_dir": "output",
    }
    return _yaml(fields) + f"datasets:\n  - path: {json.dumps(recipe.data)}\n    type: chat_template\n"


def _llamafactory(recipe: Recipe) -> str:
    fields: dict[str, Value] = {
        "model_name_or_path": recipe.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": recipe.rank,
        "lora_alpha": _whole(recipe.alpha),
        "lora_dropout": 0.0,
        "lora_target": ",".join(recipe.targets),
        "dataset": recipe.data,
        "cutoff_len": recipe.max_length,
        "train_on_prompt": False,
        "optim": "adamw_torch",
        **recipe.trainer,
        "output_dir": "output",
    }
    return (
        "# `dataset` must stand in data/dataset_info.json, and `template` must name the model's chat template.\n"
        + _yaml(fields)
    )


def _torchtune(recipe: Recipe) -> str:
    names = {"o_proj": "output_proj"}
    known = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
    strange = sorted(set(recipe.targets) - known)
    if strange:
        raise SpecError(
            f"--emit: torchtune has no module {strange[0]!r}; name targets among {', '.join(sorted(known))}"
        )
    trainer = recipe.trainer
    schedule = {
        "constant": "get_constant_schedule",
        "constant_with_warmup": "get_constant_schedule_with_warmup",
        "linear": "get_linear_schedule_with_warmup",
        "cosine": "get_cosine_schedule_with_warmup",
    }[str(trainer["lr_scheduler_type"])]
    lines = [
        "# Merge into your model's LoRA config: tune cp <family>/<size>_lora_single_device config.yaml",
        "model:",
        f"  lora_attn_modules: {json.dumps([names.get(name, name) for name in recipe.attention_only_names])}",
        f"  apply_lora_to_mlp: {json.dumps(recipe.has_mlp)}",
        f"  apply_lora_to_output: {json.dumps(recipe.unembed)}",
        f"  lora_rank: {recipe.rank}",
        f"  lora_alpha: {_scalar(_whole(recipe.alpha))}",
        "  lora_dropout: 0.0",
        "optimizer:",
        "  _component_: torch.optim.AdamW",
        f"  lr: {_scalar(trainer['learning_rate'])}",
        f"  betas: [{_scalar(trainer['adam_beta1'])}, {_scalar(trainer['adam_beta2'])}]",
        f"  eps: {_scalar(recipe.adam_epsilon)}",
        f"  weight_decay: {_scalar(trainer['weight_decay'])}",
        "lr_scheduler:",
        f"  _component_: transformers.{schedule}",
        f"  num_warmup_steps: {trainer['warmup_steps']}",
        f"batch_size: {trainer['per_device_train_batch_size']}",
        f"gradient_accumulation_steps: {trainer['gradient_accumulation_steps']}",
        f"max_steps_per_epoch: {trainer['max_steps']}",
        "epochs: 1",
        f"clip_grad_norm: {_scalar(trainer['max_grad_norm'] or None)}",
        f"dtype: {'bf16' if recipe.bf16 else 'fp32'}",
        f"enable_activation_checkpointing: {json.dumps(trainer['gradient_checkpointing'])}",
        f"seed: {trainer['seed']}",
    ]
    return "\n".join(lines) + "\n"


TOOLS: dict[str, Callable[[Recipe], str]] = {
    "trl": _trl,
    "peft": _peft,
    "axolotl": _axolotl,
    "llamafactory": _llamafactory,
    "unsloth": _unsloth,
    "torchtune": _torchtune,
}
"""By the name that `--emit` takes."""


def _call(name: str, arguments: Mapping[str, Value], *, first: str | None = None) -> str:
    """A Python call with one keyword argument a line."""
    lines = [f"    {first},"] if first is not None else []
    lines += [f"    {key}={list(value) if isinstance(value, tuple) else value!r}," for key, value in arguments.items()]
    return "\n".join([f"{name}(", *lines, ")"])


def _yaml(fields: Mapping[str, Value]) -> str:
    return "".join(f"{key}: {_scalar(value)}\n" for key, value in fields.items())


def _scalar(value: Value) -> str:
    """A value as YAML, in its JSON form; floats with a point, because YAML 1.1 reads `1e-12` as text.

    >>> _scalar(1e-12), _scalar(0.0003), _scalar(("q_proj",))
    ('1.0e-12', '0.0003', '["q_proj"]')
    """
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e", 1) if "e" in text and "." not in text else text
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _whole(alpha: float) -> int | float:
    """Alpha as an integer where it is one: most tools type it so."""
    return int(alpha) if alpha.is_integer() else alpha
