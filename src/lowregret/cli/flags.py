"""The command line as dataclasses, one a command; the groups of flags that they share are `flag_groups`.

Guarantees: parsing imports no torch and judges no value; every setting is None (or False) unless it was given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lowregret.cli.flag_groups import (
    QUIET,
    DataFlags,
    Folder,
    HardwareFlags,
    ModelFlags,
    PolicyFlags,
    Real,
    RolloutFlags,
    SlotFlags,
    SpecFile,
    Switch,
    Text,
    TrainFlags,
    Whole,
)


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
class Rl:
    """Train adapters by policy gradient on rewards that a program computes, many in one pass, with curves and a report.

    lowregret rl --model micro-max3 --data max3 --reward exact --max-new-tokens 1 --group 8 --batch-size 64 --steps 120

    lowregret rl --model ./my-chat-model --data gsm8k --max-new-tokens 512 --rank 1,8 --lr 1e-4

    lowregret rl run.toml

    lowregret rl --resume runs/mine

    Without --rank one adapter of rank 1 trains: a completion's reward tells about a bit at most, however many tokens it
    has, and an adapter holds 2 bits a parameter. `lowregret plan --task rl` counts both for your run.
    """

    spec: SpecFile = None
    """A spec file instead of settings. Every run directory holds one: spec.toml."""
    model: ModelFlags = field(default_factory=ModelFlags)
    data: DataFlags = field(default_factory=DataFlags)
    rollouts: RolloutFlags = field(default_factory=RolloutFlags)
    policy: PolicyFlags = field(default_factory=PolicyFlags)
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
    """Exit with code 1 unless the test accuracy of every slot rose by at least 0.02."""
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

    lowregret plan run.toml
    """

    spec: SpecFile = None
    """A spec file instead of settings."""
    model: ModelFlags = field(default_factory=ModelFlags)
    data: DataFlags = field(default_factory=DataFlags)
    rollouts: RolloutFlags = field(default_factory=RolloutFlags)
    policy: PolicyFlags = field(default_factory=PolicyFlags)
    slots: SlotFlags = field(default_factory=SlotFlags)
    train: TrainFlags = field(default_factory=TrainFlags)
    hardware: HardwareFlags = field(default_factory=HardwareFlags)
    tokens: Whole = None
    """Plan for this many completion tokens an epoch, without reading any data."""
    task: Annotated[Literal["sft", "rl"] | None, QUIET] = None
    """Supervised fine-tuning or reinforcement learning (sft)."""
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
    """Write the resolved plan to this file: `lowregret sft PLAN.toml` (or rl) runs it."""
    json: Switch = False
    """Print the plan as one JSON object."""
    debug: Switch = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a trained slot as a PEFT adapter, or merged into its base; read back and compared before it says so.

    lowregret export runs/mine --slot r8 --out adapters/mine

    lowregret export runs/mine --slot r8 --merge --out models/mine

    lowregret export some/adapter --merge --model some/base --out models/mine
    """

    run: Positional[Path]
    """A run directory, or the folder of a PEFT adapter."""
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
    verify_documents: Whole = None
    """Held-out documents, of validation and then of test, on which a bf16 model must act as what was trained (64). 0
    leaves it unverified."""
    model: Text = None
    """Base of an adapter's folder (what the adapter names). A run knows its own."""
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
    """nano, micro, micro-max3, micro-64, micro-256 (all)."""
    debug: Switch = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """List the runs under a folder: state, model, data, slots, and the held-out NLL or accuracy of the best.

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


Command = Sft | Rl | Plan | Export | Runs | Diagnose | Bases
