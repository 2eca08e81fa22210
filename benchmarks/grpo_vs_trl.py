"""One step of reinforcement learning beside TRL's GRPOTrainer with PEFT: same model, prompts, group and length.

    python benchmarks/grpo_vs_trl.py --data gsm8k/train.jsonl
    python benchmarks/grpo_vs_trl.py --data gsm8k/train.jsonl --prompts 32

A step samples a group of completions of each prompt at temperature 1, scores them and makes one update, without KL.
Completions end where they end, so both sides draw their own; `mean_length` says how long they were, and what is
compared is tokens of completions a second. Each turn is a process of its own; contenders take turns, and figures are
medians over steps after each turn's first. A race on two prompts chooses the number format of either side and TRL's
micro-batch (the number in a contender's name) and cache; with --short the formats are those of `formats.py`. All start
from one adapter.

Completions are scored by exact match on both sides. What is learned from is by default not that score: a small base is
right on so few questions that most groups would carry no gradient, and ours leaves such groups out of its backward
where TRL does not. With `--rewards mixed` every second completion of a group counts as right, so that both sides learn
from all of them; `--rewards exact` times what a user would see.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beside.envelope import Answer, write_result
from beside.formats import CANDIDATES, PATIENCE, best
from beside.ours import ALPHA, RANK, SLOT, bank_on, optimizer_of, write_start
from beside.trl_sft import FORMATS
from beside.turns import TooSlow, give, in_process_of_its_own, median, need, parse, parser_of, peak_mib, say, take_turns

SHORT = {"prompts": 2, "group": 4, "new_tokens": 16, "steps": 6, "rounds": 1, "race": 0}
MICRO_BATCH = 8
LR = 1e-6
"""The rate is so low that no step changes how long the next one's completions are."""
SETTINGS = ("prompts", "group", "new_tokens", "rewards", "steps", "budget", "rows", "threads")


def main() -> None:
    """Prepare the prompts, race the settings, let the contenders take turns, sum up."""
    started = time.perf_counter()
    parser = parser_of(__doc__, data="reasoning-gym:gsm_symbolic", short=SHORT)
    parser.add_argument("--prompts", type=int, default=8, help="prompts a step (8)")
    parser.add_argument("--group", type=int, default=8, help="completions of each prompt (8)")
    parser.add_argument("--new-tokens", type=int, default=128, help="longest completion (128)")
    parser.add_argument("--rewards", choices=("mixed", "exact"), default="mixed", help="what is learned from (mixed)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn; the first is warm-up (4)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each contender (2)")
    parser.add_argument("--budget", type=int, default=2048, help="tokens of ours' micro-batches (2048)")
    parser.add_argument("--rows", type=int, default=64, help="completions that ours decodes side by side (64)")
    parser.add_argument("--race", type=int, default=1, help="race of formats, micro-batches and caches (1)")
    arguments = parse(parser, SHORT)
    if arguments.child:
        give(run_contender(arguments.child, json.loads(arguments.job.read_text())))
        return
    need((arguments.steps - 1) * arguments.rounds, arguments, "--steps or --rounds")
    with tempfile.TemporaryDirectory() as scratch:
        processes = Grpo(arguments, Path(scratch))
        ours, peer, race = processes.race() if arguments.race else by_formats(arguments)
        turns = take_turns("grpo_vs_trl", [ours, peer], arguments.rounds, processes.turn, describe)
    medians = {name: medians_of(own) for name, own in turns.items()}
    speeds = {name: own["tokens_per_second"] for name, own in medians.items()}
    result = write_result(
        "grpo_vs_trl",
        arguments=arguments,
        question="How fast is a step of reinforcement learning, sampling included?",
        rows=[
            {
                "contender": name,
                "format": FORMATS[name.split("-")[1]],
                "measurements": sum(len(turn["steps"]) - 1 for turn in own),
            }
            for name, own in turns.items()
        ],
        medians=medians,
        answers={
            "grpo_step": Answer(
                ours=speeds[ours],
                peer=speeds[peer],
                unit="tokens of completions/s",
                ours_was=f"lowregret, {FORMATS[ours.split('-')[1]]}",
                peer_was=f"TRL GRPOTrainer + PEFT, {FORMATS[peer.split('-')[1]]}, micro-batch {peer.split('-')[2]}",
            )
        },
        checks={
            "mean_length": {name: own["mean_length"] for name, own in medians.items()},
            "groups_with_signal": {name: own["groups_with_signal"] for name, own in medians.items()},
            "race": race,
        },
        raw=turns,
        started=started,
    )
    print(json.dumps({key: result[key] for key in ("answers", "medians")}, indent=1))


def by_formats(arguments: argparse.Namespace) -> tuple[str, str, dict[str, Any]]:
    """Contenders by the race of training steps."""
    fastest, race = best(arguments, "lora")
    micro_batch = min(MICRO_BATCH, arguments.prompts * arguments.group)
    return f"ours-{fastest['ours']}", f"trl-{fastest['trl']}-{micro_batch}", race


class Grpo:
    """The processes of the contenders, and the race that chooses among them."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.arguments, self.scratch = arguments, scratch
        self.job: dict[str, Any] = prepare(arguments) | {"scratch": str(scratch)}
        self.job |= self.turn("start")

    def turn(self, name: str, limit: float | None = None, **changes: Any) -> dict[str, Any]:
        """One contender in a process of its own."""
        job_file = self.scratch / "job.json"
        job_file.write_text(json.dumps(self.job | {"settings": self.job["settings"] | changes}))
        command = [__file__, "--child", name, "--job", str(job_file)]
        return in_process_of_its_own(command, name, threads=self.arguments.threads, most_seconds=limit)

    def race(self) -> tuple[str, str, dict[str, Any]]:
        """The fastest of ours and of TRL's settings on two prompts, and what all of them took."""
        found: dict[str, float | str] = {}
        ours = self._fastest([f"ours-{f}" for f in CANDIDATES["ours"]], found)
        first = self._fastest([f"trl-{f}-{MICRO_BATCH}" for f in CANDIDATES["trl"]], found)
        number_format = first.split("-")[1]
        others = [f"trl-{number_format}-{2 * MICRO_BATCH}", f"{first}-static"]
        return ours, self._fastest([first, *others], found), {"seconds_a_step": found}

    def _fastest(self, names: list[str], found: dict[str, float | str]) -> str:
        small = {"prompts": 2, "group": MICRO_BATCH, "new_tokens": min(32, self.arguments.new_tokens), "steps": 2}
        walls: list[float] = []
        for name in names:
            began = time.perf_counter()
            limit = PATIENCE * min(walls) if walls else None
            if name not in found:
                try:
                    turn = self.turn(name, limit, **small)
                    found[name] = turn["steps"][-1]["seconds"]
                    walls.append(time.perf_counter() - began)
                except TooSlow:
                    found[name] = f"stopped after {limit:.0f} s"
            say(f"grpo_vs_trl, race: {name}: {found[name]}")
        seconds = {name: value for name in names if isinstance(value := found[name], float)}
        return min(seconds, key=lambda name: seconds[name])


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
    spec = DataSpec(source=arguments.data, limit=4 * needed + 100)
    problems = load_problems(spec, rl, TextTokenizer.from_folder(folder.path)).train
    assert len(problems) >= needed, "the data has too few questions"
    return {
        "model": str(folder.path),
        "rows": [{"tokens": list(p.tokens), "answer": p.problem.answer} for p in problems[:needed]],
        "settings": {name: getattr(arguments, name) for name in SETTINGS},
    }


def run_contender(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """What each step took and made, and the process's peak memory."""
    import torch

    settings = argparse.Namespace(**job["settings"])
    torch.set_num_threads(settings.threads)
    if name == "start":
        return {"start": str(write_start(job, random_b=False))}
    side, dtype, *options = name.split("-")
    log = StepLog(settings)
    if side == "ours":
        train_ours(job, settings, dtype, log)
    else:
        train_trl(job, settings, dtype, int(options[0]), "static" in options, log)
    return {"steps": log.steps, "peak_mib": peak_mib()}


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
    from lowregret.specs import Problem, RewardSpec, RLSpec, SamplingSpec, Score
    from lowregret.training.memory import release_freed_memory
    from lowregret.training.policy_step import policy_step

    class Scorer:
        """As `rollout_groups` wants it."""

        def score(self, answers: Sequence[tuple[Problem, str]]) -> list[Score]:
            found = log.rewards([problem.answer for problem, _ in answers], [text for _, text in answers])
            return [Score(value=value) for value in found]

    slot = SLOT["lora"]
    model, bank = bank_on(job["model"], dtype)
    optimizers = {slot: optimizer_of(bank, slot, lr=LR)}
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
        groups = rollout_groups(sampler, Scorer(), tokenizer, {slot: wanted})[slot]
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        log.sampled([r.completion.num_tokens for r in rollouts], [r.reward for r in rollouts])
        release_freed_memory(model.device)
        policy_step(
            model,
            {slot: groups},
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
        peft.set_peft_model_state_dict(trainer.model, peft.load_peft_weights(job["start"]))
        trainer.train()


def medians_of(turns: list[dict[str, Any]]) -> dict[str, float]:
    """Over the steps after each turn's first."""
    steps = [step for turn in turns for step in turn["steps"][1:]]
    return {
        "tokens_per_second": median(step["tokens"] / step["seconds"] for step in steps),
        "seconds_a_step": median(step["seconds"] for step in steps),
        "seconds_sampling": median(step["sampling"] for step in steps),
        "mean_length": statistics.mean(step["tokens"] / step["completions"] for step in steps),
        "exact": statistics.mean(step["exact"] for step in steps),
        "groups_with_signal": statistics.mean(step["with_signal"] for step in steps),
        "peak_mib": median(turn["peak_mib"] for turn in turns),
    }


def describe(turn: dict[str, Any]) -> str:
    """One line for whoever waits."""
    found = medians_of([turn])
    return (
        f"{found['tokens_per_second']:.0f} tokens/s, {found['seconds_a_step']:.1f} s a step of which "
        f"{found['seconds_sampling']:.1f} s sampling, {found['peak_mib']:.0f} MiB"
    )


if __name__ == "__main__":
    main()
