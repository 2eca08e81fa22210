"""One step of reinforcement learning beside TRL's GRPOTrainer with PEFT: same model, prompts, group and length.

    python benchmarks/grpo_vs_trl.py --data gsm8k/train.jsonl
    python benchmarks/grpo_vs_trl.py --data gsm8k/train.jsonl --prompts 32 --contenders ours-bf16,trl-bf16-8

A step samples a group of completions of each prompt at temperature 1, scores them and makes one update, without KL.
Completions end where they end, so both sides draw their own; `mean_length` says how long they were, and tokens a second
are tokens of completions. Each contender is a process of its own, so that its peak memory is its own; they take turns,
and the figures are medians over steps after the first. TRL is tried with bf16 weights, with autocast and in fp32, at
several micro-batches (the number in a contender's name) and with a static cache; the fastest is the peer. All start
from one fresh adapter.

Completions are scored by exact match on both sides. What is learned from is by default not that score: a small base is
right on so few questions that most groups would carry no gradient, and ours leaves such groups out of its backward
where TRL does not. With `--rewards mixed` every second completion of a group counts as right, so that both sides learn
from all of them; `--rewards exact` times what a user would see.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beside.contenders import ALPHA, RANK, bank_on, take_turn, write_start

CONTENDERS = (
    *("ours-bf16", "ours-fp32"),
    *("trl-bf16-8", "trl-bf16-16", "trl-bf16-8-static", "trl-autocast-8", "trl-fp32-8"),
)
LR = 1e-6
"""The rate is so low that no step changes how long the next one's completions are."""


def main() -> None:
    """Prepare the prompts, let the contenders take turns, sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="reasoning-gym:chain_sum", help="GSM8K's train.jsonl, or other questions")
    parser.add_argument("--prompts", type=int, default=8, help="prompts a step")
    parser.add_argument("--group", type=int, default=8, help="completions of each prompt")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rewards", choices=("mixed", "exact"), default="mixed")
    parser.add_argument("--steps", type=int, default=3, help="steps of each contender and round; the first is warm-up")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--budget", type=int, default=2048, help="tokens of ours' micro-batches")
    parser.add_argument("--rows", type=int, default=64, help="completions that ours decodes side by side")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/grpo_vs_trl.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        job = json.loads(arguments.job.read_text())
        print("RESULT " + json.dumps(run_contender(arguments.child, job)))
        return
    if arguments.steps < 2:
        parser.error("--steps: the first step is warm-up, so at least 2 are needed")
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
    shown = ("tokens_per_second", "seconds_a_step", "seconds_sampling", "mean_length", "peak_mib", "ratios")
    print(json.dumps({key: summary[key] for key in shown}, indent=1))


def prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokenise the prompts once, the same for all contenders."""
    from lowregret.data.problems import load_problems
    from lowregret.data.tokenizer import TextTokenizer
    from lowregret.models.locate import locate_model
    from lowregret.specs import DataSpec, ModelSpec, RewardSpec, RLSpec, SamplingSpec

    folder = locate_model(ModelSpec(source=arguments.model))
    needed = arguments.steps * arguments.prompts
    sampling = SamplingSpec(max_new_tokens=arguments.new_tokens)
    rl = RLSpec(rewards=(RewardSpec(source="exact"),), sampling=sampling)
    spec = DataSpec(source=arguments.data, limit=4 * needed)
    problems = load_problems(spec, rl, TextTokenizer.from_folder(folder.path)).train
    assert len(problems) >= needed, "the data has too few questions"
    settings = ("prompts", "group", "new_tokens", "rewards", "steps", "budget", "rows", "threads")
    return {
        "model": str(folder.path),
        "rows": [{"tokens": list(p.tokens), "answer": p.problem.answer} for p in problems[:needed]],
        "settings": {name: getattr(arguments, name) for name in settings},
    }


def turn_of(name: str, job_file: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One contender in a process of its own."""
    return take_turn([__file__, "--child", name, "--job", str(job_file)], name, threads=arguments.threads)


def run_contender(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """What each step took and made, and the process's peak memory."""
    import torch

    settings = argparse.Namespace(**job["settings"])
    torch.set_num_threads(settings.threads)
    if name == "start":
        write_start(job)
        return {}
    side, dtype, *options = name.split("-")
    log = StepLog(settings)
    if side == "ours":
        train_ours(job, settings, dtype, log)
    else:
        train_trl(job, settings, dtype, int(options[0]), "static" in options, log)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"steps": log.steps, "peak_mib": peak_mib}


class StepLog:
    """What each step of a contender took and made; also the scorer of both sides."""

    def __init__(self, settings: argparse.Namespace) -> None:
        self.settings = settings
        self.steps: list[dict[str, float]] = []
        self._began, self._now = 0.0, dict[str, float]()

    def begin(self) -> None:
        self._began = time.perf_counter()

    def rewards(self, answers: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Exact match, logged; and the rewards that are learned from, in the order of the completions."""
        from lowregret.rewards.exact import Exact
        from lowregret.specs import Problem

        pairs = zip(answers, texts, strict=True)
        exact = [Exact().score(Problem(question="", answer=answer), text) for answer, text in pairs]
        self._now["exact"] = statistics.mean(exact)
        return exact if self.settings.rewards == "exact" else [float(index % 2) for index in range(len(exact))]

    def sampled(self, lengths: Sequence[int], rewards: Sequence[float]) -> None:
        """All completions of a step are drawn and scored."""
        size = self.settings.group
        groups = [rewards[start : start + size] for start in range(0, len(rewards), size)]
        self._now["sampling"] = time.perf_counter() - self._began
        self._now["tokens"] = sum(lengths)
        self._now["completions"] = len(lengths)
        self._now["with_signal"] = statistics.mean(min(group) < max(group) for group in groups)

    def end(self) -> None:
        self.steps.append({**self._now, "seconds": time.perf_counter() - self._began})


def train_ours(job: dict[str, Any], settings: argparse.Namespace, dtype: str, log: StepLog) -> None:
    """The engine's own sampler and update."""
    from lowregret.data.problems import PromptProblem
    from lowregret.data.tokenizer import TextTokenizer
    from lowregret.sampling.rollouts import rollout_groups, rollout_seed
    from lowregret.sampling.sampler import Sampler
    from lowregret.specs import OptimSpec, Problem, RewardSpec, RLSpec, SamplingSpec, Score
    from lowregret.training.memory import release_freed_memory
    from lowregret.training.optimizer import AdamW
    from lowregret.training.policy_step import policy_step

    class Scorer:
        """As `rollout_groups` wants it."""

        def score(self, answers: Sequence[tuple[Problem, str]]) -> list[Score]:
            found = log.rewards([problem.answer for problem, _ in answers], [text for _, text in answers])
            return [Score(value=value) for value in found]

    model, bank = bank_on(job, dtype)
    optimizers = {"r16": AdamW(OptimSpec(lr=LR), bank.blocks("r16"))}
    tokenizer = TextTokenizer.from_folder(Path(job["model"]))
    sampling = SamplingSpec(max_new_tokens=settings.new_tokens, rows=settings.rows)
    rl = RLSpec(rewards=(RewardSpec(source="exact"),), group=settings.group, sampling=sampling)
    problems = [
        PromptProblem(problem=Problem(question="", answer=row["answer"]), tokens=tuple(row["tokens"]))
        for row in job["rows"]
    ]
    for step in range(settings.steps):
        log.begin()
        wanted = []
        for index in range(step * settings.prompts, (step + 1) * settings.prompts):
            first = rollout_seed(0, step, 0, index)
            wanted.append((index, problems[index], tuple(range(first, first + settings.group))))
        sampler = Sampler(model, sampling, stop_tokens=frozenset(tokenizer.stop_token_ids), decode=tokenizer.decode)
        groups = rollout_groups(sampler, Scorer(), tokenizer, {"r16": wanted})["r16"]
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        log.sampled([r.completion.num_tokens for r in rollouts], [r.reward for r in rollouts])
        release_freed_memory(model.device)
        policy_step(
            model,
            {"r16": groups},
            optimizers,
            rl,
            tokens_per_microbatch=settings.budget,
            factor=1.0,
        )
        log.end()


def train_trl(
    job: dict[str, Any], settings: argparse.Namespace, dtype: str, micro_batch: int, static: bool, log: StepLog
) -> None:
    """GRPOTrainer with PEFT: all completions of a step at once, then its micro-batches, one update."""
    import datasets
    import peft
    import torch
    import transformers
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=torch.bfloat16 if dtype == "bf16" else torch.float32, attn_implementation="sdpa"
    )
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(job["model"])
    rows = [{"prompt": tokenizer.decode(row["tokens"]), "answer": row["answer"]} for row in job["rows"]]
    for row, given in zip(rows, job["rows"], strict=True):
        assert tokenizer(row["prompt"])["input_ids"] == given["tokens"], "both sides must read the same tokens"
    size = settings.prompts * settings.group
    assert size % micro_batch == 0, "the micro-batch must divide prompts x group"

    class Clock(transformers.TrainerCallback):
        """Tells the log when a step begins and ends."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            log.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            log.end()

    def reward(
        completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any
    ) -> list[float | None]:
        found = log.rewards(answer, completions)
        log.sampled([len(tokens) for tokens in completion_ids], found)
        return [*found]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=size // micro_batch,
            num_generations=settings.group,
            max_completion_length=settings.new_tokens,
            temperature=1.0,
            beta=0.0,
            num_iterations=1,
            scale_rewards="none",
            loss_type="dr_grpo",  # as ours: no division by a completion's length
            max_steps=settings.steps,
            learning_rate=LR,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            adam_epsilon=1e-12,
            max_grad_norm=0.0,
            gradient_checkpointing=False,
            cache_implementation="static" if static else None,
            bf16=dtype == "autocast",
            use_cpu=True,
            shuffle_dataset=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        lora = peft.LoraConfig(
            r=RANK, lora_alpha=int(ALPHA), lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[Clock()],
        )
        peft.set_peft_model_state_dict(trainer.model, peft.load_peft_weights(job["adapter"]))
        trainer.train()


def median(turns: list[dict[str, Any]], value: str) -> float:
    """Over the steps after each round's first; `speed` is tokens of completions a second, `length` their mean."""
    steps = [step for turn in turns for step in turn["steps"][1:]]
    if value == "speed":
        return statistics.median(step["tokens"] / step["seconds"] for step in steps)
    if value == "length":
        return statistics.mean(step["tokens"] / step["completions"] for step in steps)
    return statistics.median(step[value] for step in steps)


def describe(turn: dict[str, Any]) -> str:
    """One line for whoever waits."""
    return (
        f"{median([turn], 'speed'):.0f} tokens/s, {median([turn], 'seconds'):.1f} s a step of which "
        f"{median([turn], 'sampling'):.1f} s sampling, {turn['peak_mib']} MiB"
    )


def summarise(rounds: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians, ratios to the fastest peer, and where it ran."""
    values = {
        "tokens_per_second": "speed",
        "seconds_a_step": "seconds",
        "seconds_sampling": "sampling",
        "mean_length": "length",
        "exact": "exact",
        "with_signal": "with_signal",
    }
    summary: dict[str, Any] = {
        name: {contender: median(turns, value) for contender, turns in rounds.items()} for name, value in values.items()
    }
    speeds, seconds = summary["tokens_per_second"], summary["seconds_a_step"]
    peaks = {name: min(turn["peak_mib"] for turn in turns) for name, turns in rounds.items()}
    summary |= {"peak_mib": peaks, "ratios": {}}
    peers = [name for name in rounds if name.startswith("trl")]
    if peers and "ours-bf16" in rounds:
        best = max(peers, key=lambda name: speeds[name])
        summary["ratios"] = {
            "peer": best,
            "tokens_per_second": speeds["ours-bf16"] / speeds[best],
            "seconds_a_step": seconds[best] / seconds["ours-bf16"],
            "peak_memory": peaks["ours-bf16"] / peaks[best],
            "smallest_peer_memory": peaks["ours-bf16"] / min(peaks[name] for name in peers),
        }
    summary["setting"] = {
        key: str(value) for key, value in vars(arguments).items() if key not in ("child", "job", "out")
    }
    summary["machine"] = {"processor": platform.processor() or platform.machine(), "threads": arguments.threads}
    summary["versions"] = {p: importlib.metadata.version(p) for p in ("torch", "transformers", "peft", "trl")}
    summary["raw"] = rounds
    return summary


if __name__ == "__main__":
    main()
