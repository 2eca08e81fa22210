"""TRL's SFTTrainer as a contender, with PEFT or with all weights, in three number formats."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from beside.ours import ALPHA, RANK, RATE, tokens_of
from beside.turns import peak_mib

FORMATS = {"fp32": "fp32", "autocast": "fp32 weights, autocast to bf16", "bf16": "bf16 weights"}


def train_trl(job: dict[str, Any], setting: str) -> dict[str, Any]:
    """Padded batches in the given order, loss on the completion only."""
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(job, setting, Path(folder), seconds)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = peak_mib(job.get("device", "cpu"))
    return {"losses": losses, "seconds": seconds, "tokens": tokens_of(job), "peak_mib": peak}


def trainer_of(job: dict[str, Any], setting: str, folder: Path, seconds: list[float]) -> Any:
    """A trainer about to start from the job's weights; each step's seconds will be appended to `seconds`."""
    import datasets
    import peft
    import torch
    import transformers
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    method, on_gpu = job["method"], job.get("device") == "cuda"
    dtype = torch.bfloat16 if setting == "bf16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, attn_implementation="sdpa")
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])

    class Clock(transformers.TrainerCallback):
        """Seconds of each optimizer step."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.started)

    config = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=job["batch_size"],
        max_steps=job["steps"],
        learning_rate=job.get("lr", RATE[method]),
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        adam_epsilon=1e-12,
        max_grad_norm=0.0,
        max_length=None,
        completion_only_loss=True,  # by the column completion_mask
        gradient_checkpointing=False,
        bf16=setting == "autocast",
        use_cpu=not on_gpu,
        use_liger_kernel=job.get("liger", False),
        train_sampling_strategy="sequential",
        per_device_eval_batch_size=job["batch_size"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    lora = peft.LoraConfig(
        r=job.get("rank", RANK),
        lora_alpha=int(ALPHA),
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    held_out = job.get("held_out")
    trainer: Any = SFTTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(job["rows"]),
        eval_dataset=datasets.Dataset.from_list(held_out) if held_out else None,
        processing_class=tokenizer,
        peft_config=lora if method == "lora" else None,
        callbacks=[Clock()],
    )
    if method == "lora" and "start" in job:
        peft.set_peft_model_state_dict(trainer.model, peft.load_peft_weights(job["start"]))
    return trainer


def gradients_of_peer(job: dict[str, Any]) -> dict[str, Any]:
    """fp32 autograd through `transformers` (and PEFT) on the first `checked` rows, padded."""
    import peft
    import torch
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=torch.float32, attn_implementation="sdpa"
    )
    if job["method"] == "lora":
        model = peft.PeftModel.from_pretrained(model, job["random_start"], is_trainable=True)
    model.eval()  # no dropout; what has a gradient is decided by requires_grad
    rows = job["rows"][: job["checked"]]
    longest = max(len(row["input_ids"]) for row in rows)
    tokens, mask, labels = (torch.full((len(rows), longest), fill) for fill in (0, 0, -100))
    for index, row in enumerate(rows):
        ids, loss = torch.tensor(row["input_ids"]), torch.tensor(row["completion_mask"], dtype=torch.bool)
        tokens[index, : len(ids)], mask[index, : len(ids)] = ids, 1
        labels[index, : len(ids)][loss] = ids[loss]
    model(input_ids=tokens, attention_mask=mask, labels=labels).loss.backward()
    return {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter.grad.flatten()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
