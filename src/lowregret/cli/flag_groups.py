"""Flags that several commands share, by group. Guarantees: parsing imports no torch and judges no value.

Every setting is None (or False) unless it was given, so that a flag beside a spec file or `--resume` can be compared
with what stands there instead of being ignored. The defaults live in `lowregret.specs`, their meaning too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

# A default of None means "not given"; the help tells the true default in words instead.
QUIET = arg(help_behavior_hint="")
Switch = Annotated[bool, QUIET]
Text = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
Items = Annotated[str | None, arg(metavar="A,B,...", help_behavior_hint="")]
Whole = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Real = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]
Folder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]
SpecFile = Positional[Annotated[Path | None, arg(metavar="[RUN.toml]", help_behavior_hint="")]]


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """The base model. Its weights are never changed; code from a hub is never run."""

    model: Text = None
    """Hub id (HuggingFaceTB/SmolLM2-135M), local folder, .gguf file, or the packaged smollm2-135m."""
    revision: Text = None
    """Branch, tag or commit of a hub model."""


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """The data set. The splits are fixed by a hash of each prompt: the same for every run on that data."""

    data: Text = None
    """Hub id, a JSONL, JSON, CSV or Parquet file, a generated set (facts, reasoning-gym:<task>), or the short name of a
    usual one: gsm8k, math, deepmath, openr1-math."""
    config: Text = None
    """Configuration of a hub data set (main for openai/gsm8k)."""
    split: Text = None
    """Split of a hub data set to train on (train)."""
    test_split: Text = None
    """Split of a hub data set to report on (its own test split where it has one)."""
    test_data: Text = None
    """A second local file to report on."""
    format: Annotated[
        Literal["auto", "messages", "sharegpt", "prompt-completion", "question-answer", "instruction", "text"] | None,
        QUIET,
    ] = None
    """How a row becomes a conversation (auto: found from the columns)."""
    columns: Items = None
    """Other column names, as role=column: question=problem,answer=solution."""
    loss_on: Annotated[Literal["all", "last"] | None, QUIET] = None
    """Assistant turns that carry loss (all)."""
    max_length: Whole = None
    """Longest example in tokens (2048)."""
    overlong: Annotated[Literal["drop", "truncate"] | None, QUIET] = None
    """What happens to longer ones (drop); they are counted."""
    validation_size: Whole = None
    """Examples to choose settings by (5 %, at most 512)."""
    test_size: Whole = None
    """Examples to report on (5 %, at most 512)."""
    limit: Whole = None
    """Use the first N rows; for a generated set, generate N."""
    data_seed: Whole = None
    """Seed of generated data and of the splits (0)."""


@dataclass(frozen=True, kw_only=True)
class SlotFlags:
    """What trains. All adapters train in one pass over one frozen base; several ranks and rates give their product."""

    rank: Items = None
    """Ranks, as in 1,8,64. Without it (and without --full) 1 in RL, else what the planner suggests for the data."""
    lr: Items = None
    """Learning rates of the adapters, as in 1e-4,3e-4. Without it the planner chooses."""
    alpha: Real = None
    """Scale numerator (32 at every rank)."""
    targets: Items = None
    """all, attention, mlp, or module names such as q_proj,v_proj (all)."""
    unembed: Switch = False
    """Adapt the unembedding too."""
    full: Switch = False
    """Train the full weights, as the slot `full`; beside adapters where --rank is given."""
    full_lr: Items = None
    """Learning rates of full fine-tuning. Without it the planner chooses."""
    support: Annotated[Literal["all", "matched"] | None, QUIET] = None
    """Full fine-tuning of all weights, or of the matrices that an adapter would adapt (all)."""
    seed: Whole = None
    """Seed of the adapters, of the order of the examples and of rounding (0)."""


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """How long, in which steps, and how often it is measured."""

    steps: Whole = None
    """Optimizer steps (as many as --epochs gives)."""
    epochs: Real = None
    """Passes over the training data (1)."""
    batch_size: Whole = None
    """Sequences a step and slot; in RL prompts (8)."""
    schedule: Annotated[Literal["constant", "linear", "cosine"] | None, QUIET] = None
    """Learning rate over time (constant)."""
    warmup: Whole = None
    """Steps of linear warm-up (0)."""
    eval_every: Whole = None
    """Steps between held-out evaluations, after the early ones at 0, 1, 2, 4, ... (100)."""
    checkpoint_every: Whole = None
    """Steps between checkpoints (100)."""
    also_eval: Items = None
    """SFT: further data sets, separated by commas, whose NLL is reported: what is forgotten."""


@dataclass(frozen=True, kw_only=True)
class HardwareFlags:
    """Where it computes."""

    device: Text = None
    """cpu, cuda, cuda:1, mps (the first accelerator, else cpu)."""
    dtype: Annotated[Literal["bf16", "fp32"] | None, QUIET] = None
    """Format of the base (bf16 where the device multiplies it fast); what trains is fp32 in either."""
    threads: Whole = None
    """CPU threads (torch's default)."""
    tokens_per_microbatch: Whole = None
    """Tokens that one forward and backward holds (from memory)."""
    memory: Text = None
    """Memory that the run may use, as in 24GiB or 800MiB (what is free)."""
    activation_checkpointing: Switch = False
    """Keep less and compute more: less memory, a third more time."""


@dataclass(frozen=True, kw_only=True)
class RolloutFlags:
    """Reinforcement: what is asked, how answers are drawn, and what they earn."""

    reward: Items = None
    """Scorers, whose sum is the reward: math (equal as mathematics), exact (equal as text), reasoning-gym (the task's
    own), or path/to/file.py:function, called with question, answer, completion and entry."""
    reward_timeout: Real = None
    """Seconds that one answer may take to score; after that it earns nothing (5)."""
    template: Text = None
    """How a question becomes a prompt, with {question} in it (the model's chat template, else the question alone)."""
    group: Whole = None
    """Completions of each prompt (16). The advantage of one is its reward minus the mean of its group."""
    max_new_tokens: Whole = None
    """Longest completion in tokens; what is longer is cut off and scored as it is (256)."""
    temperature: Real = None
    """Logits are divided by it, in the sampler and in the learner (1)."""
    top_p: Real = None
    """Draw from the likeliest tokens of this probability only (1: from all, as the learner assumes)."""
    top_k: Whole = None
    """Draw from the k likeliest tokens only (all)."""
    stop: Text = None
    """A string that ends a completion, besides the model's own end (a spec file takes several)."""
    rows: Whole = None
    """Completions that are decoded side by side (64). More is faster, and costs memory for their keys and values."""
    sampler: Annotated[Literal["own", "vllm"] | None, QUIET] = None
    """What draws the completions: this package, or vLLM on a GPU (extra `vllm`) (own)."""
    dynamic: Whole = None
    """Rounds of further prompts that replace groups whose rewards are all equal and teach nothing (0)."""
    eval_samples: Whole = None
    """Drawn completions of each held-out prompt at every evaluation, beside the greedy one (0)."""
    judge_by: Annotated[Literal["greedy", "sampled"] | None, QUIET] = None
    """Which held-out answers the accuracy counts: the likeliest, or drawn ones (--eval-samples) (greedy)."""


@dataclass(frozen=True, kw_only=True)
class PolicyFlags:
    """Reinforcement: the objective, the sum over tokens of (p_learner / p_sampler) x advantage, and changes to it."""

    updates_per_batch: Whole = None
    """Optimizer steps that each batch of completions is split into (1: every step learns from its own samples)."""
    ratio: Annotated[Literal["token", "sequence"] | None, QUIET] = None
    """Weigh each token by its own ratio, or by the geometric mean over its completion (token)."""
    clip_low: Real = None
    """PPO: no gradient where the ratio is below 1 - X and the advantage negative (no clipping)."""
    clip_high: Real = None
    """PPO: no gradient where the ratio is above 1 + X and the advantage positive (no clipping)."""
    truncate: Real = None
    """Cut ratios to this but keep their gradient, instead of clipping (no truncation)."""
    kl: Real = None
    """Nats of reward that a nat of divergence from the base costs (0). Not with --full, which keeps no base."""
    divide_by_std: Switch = False
    """Divide advantages by their group's standard deviation."""
    normaliser: Annotated[Literal["completions", "tokens"] | None, QUIET] = None
    """Divide the sum by the number of completions, or of tokens (completions)."""
