"""Reinforcement learning with LoRA as one flat loop, for reading: groups of samples, exact rewards, policy gradient.

    lowregret bases micro-max3
    python recipes/rl_loop.py --model micro-max3 --data max3 --rank 1 --lr 3e-3 --steps 60

What `train_rl` does, without slots, packing or checkpoints; a test shows that it gives the same rewards and weights. It
runs in fp32, where every update acts; in bf16 the line marked (*) would round the base output before the adapter's
share is added, and swallow most of a small update.
Suffixes: G completions of a group, L their tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lowregret.adapters.bank import initial_a
from lowregret.batches import Completion
from lowregret.data.order import ExampleOrder
from lowregret.data.problems import PromptProblem, load_problems
from lowregret.data.tokenizer import TextTokenizer
from lowregret.models.locate import locate_model
from lowregret.rewards.exact import Exact
from lowregret.sampling.draw import draw, uniforms
from lowregret.sampling.rollouts import completion_text, rollout_seed
from lowregret.specs import AdapterSpec, DataSpec, ModelSpec, RewardSpec, RLSpec, SamplingSpec

HELD_OUT = 200
"""Problems whose reward is measured before and after."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The loop's knobs."""

    rank: int = 1
    alpha: float = 32.0
    lr: float = 3e-3
    steps: int = 60
    prompts: int = 16
    group: int = 8
    max_new_tokens: int = 4
    temperature: float = 1.0
    seed: int = 0

    @property
    def sampling(self) -> SamplingSpec:
        """How completions are drawn."""
        return SamplingSpec(max_new_tokens=self.max_new_tokens, temperature=self.temperature)


class LoRALinear(nn.Module):
    """y = W x + (alpha / rank) B A x, with W frozen, A uniform and B zero."""

    def __init__(self, linear: nn.Linear, name: str, settings: Settings) -> None:
        super().__init__()
        spec = AdapterSpec(rank=settings.rank, alpha=settings.alpha, init_seed=settings.seed)
        self.linear = linear.requires_grad_(False)
        self.scaling = spec.scaling
        self.a = nn.Parameter(initial_a(spec, name, linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, settings.rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scaling * linear(linear(x, self.a), self.b)  # (*)


def add_lora(model: nn.Module, settings: Settings) -> list[nn.Parameter]:
    """Put an adapter on every linear layer of the decoder; returns what trains."""
    model.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ("attn" in name or "mlp" in name):
            adapted = LoRALinear(module, name, settings)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, adapted)
            trained += [adapted.a, adapted.b]
    return trained


@torch.no_grad()
def sample(
    model: Any, prompt: Sequence[int], seeds: Sequence[int], spec: SamplingSpec, stop_tokens: Sequence[int]
) -> list[Completion]:
    """One completion a seed. All rows continue the same prompt, so that nothing is padded; a row that has ended goes on
    unheard until the others have."""
    tokens: list[list[int]] = [[] for _ in seeds]
    logprobs: list[list[float]] = [[] for _ in seeds]
    going = set(range(len(seeds)))
    read, cache = torch.tensor([list(prompt)] * len(seeds)), None
    for position in range(spec.max_new_tokens):
        output = model(input_ids=read, past_key_values=cache, use_cache=True, logits_to_keep=1)
        numbers = uniforms(seeds, [position] * len(seeds))
        drawn_G, logprobs_G = draw(output.logits[:, -1], numbers, spec)
        for row in sorted(going):
            tokens[row].append(int(drawn_G[row]))
            logprobs[row].append(float(logprobs_G[row]))
            if tokens[row][-1] in stop_tokens:
                going.remove(row)
        if not going:
            break
        read, cache = drawn_G[:, None], output.past_key_values
    return [
        Completion(tokens=np.array(own), logprobs=np.array(each, dtype=np.float32), stopped=own[-1] in stop_tokens)
        for own, each in zip(tokens, logprobs, strict=True)
    ]


def objective(
    model: Any, prompt: Sequence[int], said: Sequence[Completion], advantages_G: Tensor, temperature: float
) -> Tensor:
    """Sum over a group's tokens of p_learner / p_sampler * advantage."""
    longest = max(completion.num_tokens for completion in said)
    tokens_GL = torch.zeros(len(said), longest, dtype=torch.int64)
    sampled_GL, counts_GL = torch.zeros(len(said), longest), torch.zeros(len(said), longest)
    for row, completion in enumerate(said):
        tokens_GL[row, : completion.num_tokens] = torch.from_numpy(completion.tokens)
        sampled_GL[row, : completion.num_tokens] = torch.from_numpy(completion.logprobs)
        counts_GL[row, : completion.num_tokens] = 1
    # Padding stands on the right, where causal attention does not look.
    whole = torch.cat([torch.tensor([list(prompt)] * len(said)), tokens_GL], 1)
    logits_GLV = model(input_ids=whole, logits_to_keep=longest + 1).logits[:, :-1] / temperature
    logprobs_GL = torch.log_softmax(logits_GLV, -1).gather(-1, tokens_GL[..., None])[..., 0]
    ratios_GL = torch.exp(logprobs_GL - sampled_GL)  # 1 but for rounding: sampler and learner have the same weights
    return (ratios_GL * advantages_G[:, None] * counts_GL).sum()


def rewards_of(problem: PromptProblem, said: Sequence[Completion], tokenizer: TextTokenizer) -> Tensor:
    """1 for each completion that says the answer and nothing else, 0 for any other."""
    texts = [completion_text(completion, tokenizer) for completion in said]
    return torch.tensor([Exact().score(problem.problem, text) for text in texts])


def mean_reward(model: Any, problems: Sequence[PromptProblem], tokenizer: TextTokenizer, settings: Settings) -> float:
    """Of a group of completions of each held-out problem."""
    rewards: list[Tensor] = []
    for index, problem in enumerate(problems):
        first = rollout_seed(settings.seed, 0, -1, index)
        seeds = range(first, first + settings.group)
        said = sample(model, problem.tokens, seeds, settings.sampling, tokenizer.stop_token_ids)
        rewards.append(rewards_of(problem, said, tokenizer))
    return float(torch.cat(rewards).double().mean())


def train(
    model: nn.Module, problems: Sequence[PromptProblem], tokenizer: TextTokenizer, settings: Settings
) -> Iterator[float]:
    """Yield the mean reward of each step, before its update."""
    trained = add_lora(model, settings)
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, betas=(0.9, 0.999), eps=1e-12, weight_decay=0.0)
    order = ExampleOrder(len(problems), settings.seed)
    for step in range(settings.steps):
        optimizer.zero_grad()
        rewards: list[Tensor] = []
        for index in order.batch(step, settings.prompts).tolist():
            prompt = problems[index].tokens
            first = rollout_seed(settings.seed, step, 0, index)
            seeds = range(first, first + settings.group)
            said = sample(model, prompt, seeds, settings.sampling, tokenizer.stop_token_ids)
            rewards.append(rewards_of(problems[index], said, tokenizer))
            advantages_G = rewards[-1] - rewards[-1].mean()
            if rewards[-1].min() < rewards[-1].max():  # a group of equals says nothing
                gain = objective(model, prompt, said, advantages_G, settings.temperature)
                (-gain / (settings.prompts * settings.group)).backward()
        # Without any signal Adam's momentum would move the weights all the same.
        if any(parameter.grad is not None for parameter in trained):
            optimizer.step()
        yield float(torch.cat(rewards).double().mean())


def main() -> None:
    """Load, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro-max3", help="folder, hub id, GGUF file, packaged name or micro base")
    parser.add_argument("--data", default="max3", help="data set with answers, as in `lowregret rl`")
    for name, default in vars(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    source, data = arguments.pop("model"), arguments.pop("data")
    settings = Settings(**arguments)

    import transformers

    folder = locate_model(ModelSpec(source=source), notify=print)
    tokenizer = TextTokenizer.from_folder(folder.path)
    rl = RLSpec(rewards=(RewardSpec(source="exact"),), group=settings.group, sampling=settings.sampling)
    splits = load_problems(DataSpec(source=data, limit=2000), rl, tokenizer, usable=Exact().usable)
    held_out = splits.test[:HELD_OUT]
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32)
    model.eval()  # no dropout; what trains is decided by requires_grad
    print(f"held-out reward before: {mean_reward(model, held_out, tokenizer, settings):.3f}")
    for step, reward in enumerate(train(model, splits.train, tokenizer, settings), start=1):
        print(f"step {step:4d}  reward {reward:.3f}")
    print(f"held-out reward after:  {mean_reward(model, held_out, tokenizer, settings):.3f}")


if __name__ == "__main__":
    main()
