"""Flags of `lowregret study`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lowregret.cli.flag_groups import QUIET, Folder, Items, Real, Switch, Text, Whole


@dataclass(frozen=True, kw_only=True)
class Study:
    """Run an experiment of the paper on your model and data, and say what it shows, with seeds and intervals.

    lowregret study certify --model smollm2-135m --data train.jsonl --rank 16 --steps 200 --seeds 3

    lowregret study rank --model micro --data markov --rank 1,4,16,64 --steps 150 --workers 2

    lowregret study fidelity --model smollm2-135m --data train.jsonl --rank 16 --steps 8 --dtype bf16

    lowregret study rl --model micro-max3 --data max3 --reward exact --max-new-tokens 1 --steps 120 --seeds 8

    lowregret study study.toml

    lowregret study --resume studies/mine
    """

    what: Positional[Annotated[str | None, arg(metavar="[PROTOCOL|STUDY.toml]", help_behavior_hint="")]] = None
    """rank, learning-rate, batch-size, layers, early, ratio, fidelity, capacity, invariance, dynamics, cost, certify,
    rl or rl-layers; or a spec file with several questions."""
    model: Text = None
    """Hub id, local folder, .gguf file, a packaged name, or micro, nano (made here in minutes)."""
    data: Text = None
    """Hub id, a file, or a generated set."""
    rank: Items = None
    """Ranks of the adapters (1,4,16,64; with --grid paper 1 to 512; certify, layers and invariance take the first)."""
    batch_size: Items = None
    """Sequences a step (8); several for batch-size."""
    steps: Items = None
    """Optimizer steps of every cell; several run lengths for ratio and fidelity."""
    fidelity_at: Items = None
    """Steps after which fidelity measures how much of the update acts in each bf16 arithmetic: one accumulator, the
    usual addition, merged weights (1,3,10,30 and so on, and the last). It costs about eight evaluations a cell."""
    epochs: Real = None
    """Passes over the facts, for capacity (300), in place of --steps."""
    loads: Items = None
    """Bits offered to each adapter parameter, for capacity (2.5)."""
    alpha: Items = None
    """Several alphas for ratio (32)."""
    seeds: Whole = None
    """Number of seeds (3). Some verdicts need more; --power says how many."""
    grid: Annotated[Literal["adaptive", "paper", "fixed"] | None, QUIET] = None
    """Learning rates of each arm: adaptive follows the minimum until its interval is narrow (the default), paper takes
    six around the planner's at every rank, fixed those of --lr."""
    lr: Items = None
    """Learning rates of a fixed grid."""
    full_lr: Items = None
    """Those of full fine-tuning on a fixed grid (--lr)."""
    reward: Items = None
    """How answers are scored, for rl and rl-layers: math, exact, reasoning-gym, file.py:function."""
    group: Whole = None
    """Completions of each prompt, for rl and rl-layers (16)."""
    max_new_tokens: Whole = None
    """Longest completion in tokens, for rl and rl-layers (256)."""
    judge_by: Annotated[Literal["greedy", "sampled"] | None, QUIET] = None
    """Held-out answers that count, for rl and rl-layers (greedy)."""
    support: Annotated[Literal["all", "matched"] | None, QUIET] = None
    """What full fine-tuning trains: all weights, or the matrices that the adapters adapt (matched)."""
    max_length: Whole = None
    """Longest example in tokens (2048)."""
    limit: Whole = None
    """Use the first N rows; for a generated set, generate N."""
    validation_size: Whole = None
    """Examples that learning rates are chosen by."""
    test_size: Whole = None
    """Examples that are reported on."""
    no_curve: Switch = False
    """Measure held-out loss before and after training only: for models where an evaluation costs as much as a cell."""
    workers: Whole = None
    """Processes (with --ray, banks) that train side by side (1). Small bases: one worker a core with --threads 1."""
    threads: Whole = None
    """CPU threads of each worker (torch's default)."""
    ray: Text = None
    """Where a Ray cluster listens: auto, local (starts one), HOST:PORT or ray://HOST:PORT; needs the extra ray."""
    device: Text = None
    """cpu, cuda, cuda:1, mps (the first accelerator, else cpu)."""
    dtype: Annotated[Literal["bf16", "fp32"] | None, QUIET] = None
    """Format of the base (bf16 where the device multiplies it fast)."""
    budget: Real = None
    """Minutes after which no new bank starts; resume to go on."""
    out: Folder = None
    """Study directory, new or empty (studies/NAME-TIME)."""
    resume: Folder = None
    """Go on with a study that was stopped; finished cells are kept."""
    power: Switch = False
    """Say how likely each verdict is with these seeds, by simulation, and train nothing."""
    json: Switch = False
    """Print the findings as JSON; progress goes to stderr in any case."""
    debug: Switch = False
    """Show the traceback of an error."""
