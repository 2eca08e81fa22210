"""The command line as dataclasses, one a command. Guarantees: parsing imports no torch and judges no value.

Every setting is None (or False) unless it was given, so that a flag beside a spec file or `--resume` can be compared
with what stands there instead of being ignored. The defaults live in `lowregret.specs`, their meaning too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """Hub id, a JSONL, JSON, CSV or Parquet file, or a generated set: facts, reasoning-gym:<task>."""
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
    """Ranks, as in 1,8,64. Without it (and without --full) the planner suggests one from the data's size."""
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
    """Sequences a step and slot (8)."""
    schedule: Annotated[Literal["constant", "linear", "cosine"] | None, QUIET] = None
    """Learning rate over time (constant)."""
    warmup: Whole = None
    """Steps of linear warm-up (0)."""
    eval_every: Whole = None
    """Steps between held-out evaluations, after the early ones at 0, 1, 2, 4, ... (100)."""
    checkpoint_every: Whole = None
    """Steps between checkpoints (100)."""
    also_eval: Items = None
    """Further data sets, separated by commas, whose NLL is reported: what is forgotten."""


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
class Sft:
    """Train adapters by supervised fine-tuning, many in one pass, and write curves and a report.

    lowregret sft --model smollm2-135m --data reasoning-gym:chain_sum --rank 1,8,64

    lowregret sft run.toml

    lowregret sft --resume runs/mine
    """

    spec: SpecFile = None
    """A spec file instead of settings. Every run directory holds one: spec.toml."""
    model: ModelFlags = field(default_factory=ModelFlags)
    data: DataFlags = field(default_factory=DataFlags)
    slots: SlotFlags = field(default_factory=SlotFlags)
    train: TrainFlags = field(default_factory=TrainFlags)
    hardware: HardwareFlags = field(default_factory=HardwareFlags)
    out: Folder = None
    """Run directory, new or empty (runs/NAME-TIME)."""
    resume: Folder = None
    """Go on with a stopped run, from its last whole checkpoint."""
    track: Annotated[Literal["trackio", "tensorboard", "wandb"] | None, QUIET] = None
    """Send progress to a tracker too (extra `track`)."""
    must_improve: Switch = False
    """Exit with code 1 unless the test NLL of every slot fell by at least 0.01 nats."""
    json: Switch = False
    """Print the result as one JSON object; progress goes to stderr in any case."""
    debug: Switch = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Say what a run would do and why - steps, learning rates, ranks, memory, cost - without weights or training.

    lowregret plan --model smollm2-135m --data reasoning-gym:chain_sum --rank 1,8,64

    lowregret plan --model some/folder --tokens 5000000 --memory 80GiB --tflops 400

    lowregret plan --model some/folder --data train.jsonl --rank 16 --emit trl

    lowregret plan --model some/folder --data prompts.jsonl --task rl --group 16 --pass-rate 0.4
    """

    spec: SpecFile = None
    """A spec file instead of settings."""
    model: ModelFlags = field(default_factory=ModelFlags)
    data: DataFlags = field(default_factory=DataFlags)
    slots: SlotFlags = field(default_factory=SlotFlags)
    train: TrainFlags = field(default_factory=TrainFlags)
    hardware: HardwareFlags = field(default_factory=HardwareFlags)
    tokens: Whole = None
    """Plan for this many completion tokens an epoch, without reading any data."""
    task: Annotated[Literal["sft", "rl"] | None, QUIET] = None
    """Supervised fine-tuning or reinforcement learning (sft)."""
    group: Whole = None
    """RL: completions of each prompt (32)."""
    reward_bins: Whole = None
    """RL: how many different rewards there are (2: right or wrong)."""
    pass_rate: Real = None
    """RL: share of right answers before training, which tightens the bits in the rewards."""
    measure: Switch = False
    """Load the weights and measure the bits in the data: the base model's own loss on a sample. Times it too."""
    bits_per_parameter: Real = None
    """What one adapter parameter is taken to hold (2; 0.5 to 2 have been measured)."""
    tflops: Real = None
    """Speed of the device in 10^12 operations a second, a multiply-add being two: predicts the run's time."""
    emit: Annotated[Literal["trl", "peft", "axolotl", "llamafactory", "unsloth", "torchtune"] | None, QUIET] = None
    """Print the same adapter's configuration for another tool instead of the plan."""
    out: Annotated[Path | None, arg(metavar="PLAN.toml", help_behavior_hint="")] = None
    """Write the resolved plan to this file: `lowregret sft PLAN.toml` runs it."""
    json: Switch = False
    """Print the plan as one JSON object."""
    debug: Switch = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a trained slot as a PEFT adapter, or merged into its base; read back and compared before it says so.

    lowregret export runs/mine --slot r8 --out adapters/mine

    lowregret export runs/mine --slot r8 --merge --out models/mine
    """

    run: Positional[Path]
    """A run directory."""
    out: Path
    """Folder to write, new or empty."""
    slot: Text = None
    """Which slot. Needed where the run has more than one."""
    merge: Switch = False
    """Write the whole model with the adapter added to its weights."""
    dtype: Annotated[Literal["bf16", "fp32"] | None, QUIET] = None
    """Format of the written weights (adapters fp32, models bf16)."""
    rounding: Annotated[Literal["stochastic", "nearest"] | None, QUIET] = None
    """How merged weights become bf16 (stochastic: to nearest drops most of a small update)."""
    push: Text = None
    """Upload the folder to this hub repository."""
    json: Switch = False
    """Print the result as one JSON object."""
    debug: Switch = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Bases:
    """Make the micro bases: small models that are pretrained here once, in minutes, and kept in the cache.

    lowregret bases micro nano
    """

    names: Positional[tuple[str, ...]] = ()
    """nano, micro, micro-64, micro-256 (all)."""
    debug: Switch = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """List the runs under a folder: state, model, data, slots, and the held-out NLL of the best.

    lowregret runs
    """

    root: Positional[Path] = Path("runs")
    """Folder to search."""
    json: Switch = False
    """Print the list as JSON."""
    debug: Switch = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Diagnose:
    """Find the common failures in a run or a study from its logs, and name the remedy of each.

    lowregret diagnose runs/mine
    """

    folder: Positional[Annotated[Path, arg(metavar="RUN|STUDY")]]
    """A run directory, or a study directory."""
    json: Switch = False
    """Print what was found as one JSON object."""
    debug: Switch = False
    """Show the traceback of an error."""


Command = Sft | Plan | Export | Runs | Diagnose | Bases
