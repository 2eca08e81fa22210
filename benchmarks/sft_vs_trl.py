"""SFT throughput and peak memory beside TRL's SFTTrainer with PEFT: same model, same batches, one run.

    python benchmarks/sft_vs_trl.py --model smollm2-135m --data gsm8k/train.jsonl

Each contender is a process of its own, so that its peak memory is its own; they take turns, never run side by side, and
the figures are medians over steps after the first. TRL is tried in three settings (fp32; autocast to bf16; bf16
weights) and the fastest is the peer. All start from one adapter, written once as a PEFT folder, so that losses can be
compared as well: on the first batch in every arithmetic, on all batches where both sides compute in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from beside.contenders import ALPHA, RANK, bank_on, take_turn, write_start

CONTENDERS = ("ours-bf16", "ours-fp32", "trl-fp32", "trl-autocast", "trl-bf16")
LR = 3e-4


def main() -> None:
    """Prepare the batches, let the contenders take turns, sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", required=True, help="GSM8K's train.jsonl, or any file that lowregret reads")
    parser.add_argument("--steps", type=int, default=5, help="steps of each contender and round; the first is warm-up")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8, help="sequences a step")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sft_vs_trl.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        job = json.loads(arguments.job.read_text())
        print("RESULT " + json.dumps(run_contender(arguments.child, job)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        job_file = Path(scratch) / "job.json"
        job_file.write_text(json.dumps(prepare(arguments) | {"adapter": str(Path(scratch) / "adapter")}))
        turn_of("start", job_file, arguments)
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.contenders.split(",")}
        for turn in range(arguments.rounds):
            for name in rounds:
                rounds[name].append(turn_of(name, job_file, arguments))
                print(f"round {turn + 1} {name}: {describe(rounds[name][-1])}", file=sys.stderr, flush=True)
    summary = summarise(rounds, arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({key: summary[key] for key in ("tokens_per_second", "peak_mib", "ratios", "losses")}, indent=1))


def prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokenise the batches once, the same for all contenders."""
    from lowregret.data.load import load_data
    from lowregret.data.tokenizer import TextTokenizer
    from lowregret.models.locate import locate_model
    from lowregret.specs import DataSpec, ModelSpec

    folder = locate_model(ModelSpec(source=arguments.model))
    needed = arguments.steps * arguments.batch_size
    spec = DataSpec(source=arguments.data, limit=4 * needed)
    store = load_data(spec, TextTokenizer.from_folder(folder.path)).train
    rows = [store[index] for index in range(needed)]
    return {
        "model": str(folder.path),
        "batch_size": arguments.batch_size,
        "steps": arguments.steps,
        "threads": arguments.threads,
        "rows": [{"input_ids": ids.tolist(), "completion_mask": mask.astype(int).tolist()} for ids, mask in rows],
    }


def turn_of(name: str, job_file: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One contender in a process of its own."""
    return take_turn(
        [__file__, "--data", "-", "--child", name, "--job", str(job_file)], name, threads=arguments.threads
    )


def run_contender(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """Losses and seconds of each step, and the process's peak memory."""
    import torch

    torch.set_num_threads(job["threads"])
    if name == "start":
        write_start(job)
        return {}
    side, _, setting = name.partition("-")
    losses, seconds = train_ours(job, setting) if side == "ours" else train_trl(job, setting)
    size = job["batch_size"]
    tokens = [sum(len(row["input_ids"]) for row in job["rows"][k * size : (k + 1) * size]) for k in range(job["steps"])]
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"losses": losses, "seconds": seconds, "tokens": tokens, "peak_mib": peak_mib}


def train_ours(job: dict[str, Any], dtype: str) -> tuple[list[float], list[float]]:
    """The engine's own step on packed batches."""
    import numpy as np

    from lowregret.batches import TokenizedExample
    from lowregret.data.packing import microbatches
    from lowregret.specs import OptimSpec
    from lowregret.training.optimizer import AdamW
    from lowregret.training.step import train_step

    model, bank = bank_on(job, dtype)
    optimizers = {"r16": AdamW(OptimSpec(lr=LR), bank.blocks("r16"))}
    examples = [
        TokenizedExample(tokens=np.array(row["input_ids"]), completion=np.array(row["completion_mask"], dtype=bool))
        for row in job["rows"]
    ]
    losses, seconds, size = [], [], job["batch_size"]
    for step in range(job["steps"]):
        started = time.perf_counter()
        batches = microbatches({"r16": examples[step * size : (step + 1) * size]}, 4096)
        losses.append(train_step(model, batches, optimizers, factor=1.0)["r16"].loss)
        seconds.append(time.perf_counter() - started)
    return losses, seconds


def train_trl(job: dict[str, Any], setting: str) -> tuple[list[float], list[float]]:
    """SFTTrainer with PEFT: padded batches in the given order, loss on the completion only."""
    import datasets
    import peft
    import torch
    import transformers
    import trl

    dtype = torch.bfloat16 if setting == "bf16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, attn_implementation="sdpa")
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    seconds: list[float] = []

    class Clock(transformers.TrainerCallback):
        """Seconds of each optimizer step."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.started)

    with tempfile.TemporaryDirectory() as folder:
        config = trl.SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=job["batch_size"],
            max_steps=job["steps"],
            learning_rate=LR,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            adam_epsilon=1e-12,
            max_grad_norm=0.0,
            max_length=None,
            completion_only_loss=True,  # by the column completion_mask
            gradient_checkpointing=False,
            bf16=setting == "autocast",
            use_cpu=True,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        lora = peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        trainer = trl.SFTTrainer(
            model=model,
            args=config,
            train_dataset=datasets.Dataset.from_list(job["rows"]),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[Clock()],
        )
        peft.set_peft_model_state_dict(trainer.model, peft.load_peft_weights(job["adapter"]))
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, seconds


def speed(turn: dict[str, Any]) -> float:
    """Median real tokens a second over the steps after the first."""
    return statistics.median(n / s for n, s in zip(turn["tokens"][1:], turn["seconds"][1:], strict=True))


def describe(turn: dict[str, Any]) -> str:
    """One line for whoever waits."""
    return f"{speed(turn):.0f} tokens/s, {turn['peak_mib']} MiB, losses {[round(x, 4) for x in turn['losses']]}"


def summarise(rounds: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians, ratios, the comparison of losses, and where it ran."""
    import importlib.metadata
    import platform

    speeds = {name: statistics.median(speed(turn) for turn in turns) for name, turns in rounds.items()}
    peaks = {name: min(turn["peak_mib"] for turn in turns) for name, turns in rounds.items()}
    losses = {name: turns[0]["losses"] for name, turns in rounds.items()}
    peers = [name for name in speeds if name.startswith("trl")]
    summary: dict[str, Any] = {"tokens_per_second": speeds, "peak_mib": peaks, "losses": losses, "ratios": {}}
    if peers and "ours-bf16" in speeds:
        best = max(peers, key=lambda name: speeds[name])
        summary["ratios"] = {
            "peer": best,
            "tokens_per_second": speeds["ours-bf16"] / speeds[best],
            "peak_memory": peaks["ours-bf16"] / peaks[best],
            "smallest_peer_memory": peaks["ours-bf16"] / min(peaks[name] for name in peers),
        }
    if "trl-fp32" in losses and "ours-fp32" in losses:
        pairs = zip(losses["ours-fp32"], losses["trl-fp32"], strict=True)
        summary["ratios"]["largest_fp32_loss_difference"] = max(abs(a - b) for a, b in pairs)
    summary["setting"] = {
        key: str(value) for key, value in vars(arguments).items() if key not in ("child", "job", "out")
    }
    summary["machine"] = {"processor": platform.processor() or platform.machine(), "threads": arguments.threads}
    summary["versions"] = {p: importlib.metadata.version(p) for p in ("torch", "transformers", "peft", "trl")}
    summary["raw"] = rounds
    return summary


if __name__ == "__main__":
    main()
