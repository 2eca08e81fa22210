"""One training run: base, data, slots and loop settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from lowregret.specs.adapter import AdapterSpec, FullSpec
from lowregret.specs.data import DataSpec
from lowregret.specs.hardware import HardwareSpec
from lowregret.specs.model import ModelSpec
from lowregret.specs.optim import OptimSpec, ScheduleSpec
from lowregret.specs.rl import RLSpec


@dataclass(frozen=True, kw_only=True)
class SlotSpec:
    """One thing that trains: a named adapter (or the full weights) with its optimizer and data order.

    >>> SlotSpec(name="r8", weights=AdapterSpec(rank=8), optim=OptimSpec(lr=2e-4)).name
    'r8'
    """

    name: str
    """Name of the slot: `r8`, `r8-lr3e-4`, `full`; also the folder of its adapter."""
    weights: AdapterSpec | FullSpec
    """What trains."""
    optim: OptimSpec
    """How it trains."""
    data_seed: int = 0
    """Seed of this slot's order of the examples. Slots with the same seed see the same batches (paired)."""


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Length, batch and rhythm of a run.

    >>> TrainSpec().batch_size
    8
    """

    steps: int | None = None
    """Optimizer steps. None: as many as `epochs` gives."""
    epochs: float = 1.0
    """Passes over the training split; not used when `steps` is set."""
    batch_size: int = 8
    """Sequences a step and slot (RL: prompts). Small is the default because LoRA pays for large batches."""
    eval_every: int = 100
    """Steps between evaluations, after the log-spaced early ones (0, 1, 2, 4, 8, ...)."""
    eval_early: bool = True
    """Evaluate after steps 1, 2, 4, ... 64 too. Off where the curve is not wanted and a held-out set is dear."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step is always checkpointed."""
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    """Learning-rate schedule, the same for all slots."""
    drop_dominated: float | None = None
    """Factor between neighbouring learning rates of slots that differ in nothing else: those that surely won't be best
    stop early (`training/dominated.py`). None: every slot trains to the end."""
    dynamics: bool = False
    """Log the norms of A and B with every evaluation, and the kernel's alignment before the first step (C11)."""
    fidelity_at: tuple[int, ...] = ()
    """Steps after which the forward fidelity of every bf16 arithmetic is measured on the validation split (C13,
    `training/fidelity.py`); bf16 only. It holds 6 bytes a weight of the base for the while, and costs about eight
    evaluations."""
    also_eval: tuple[str, ...] = ()
    """Further data (same syntax as `data.source`) whose NLL is reported: what is forgotten."""
    num_samples: int = 2
    """Test prompts answered before and after training, in RL at every evaluation, for the reader."""


@dataclass(frozen=True, kw_only=True)
class TrackingSpec:
    """Where progress goes besides the run directory; not part of a run's identity.

    >>> TrackingSpec().tracker is None
    True
    """

    tracker: str | None = None
    """`trackio`, `tensorboard` or `wandb`."""
    project: str = "lowregret"
    """Project name at the tracker."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A whole run. `lowregret sft run.toml` or `lowregret rl run.toml` runs it; every run directory holds one.

    >>> spec = RunSpec(model=ModelSpec(source="smollm2-135m"), data=DataSpec(source="facts"), slots=())
    >>> spec.task
    'sft'
    """

    task: str = "sft"
    """`sft` or `rl`."""
    model: ModelSpec
    data: DataSpec
    slots: tuple[SlotSpec, ...]
    """What trains, in order. All LoRA slots train in one pass over one frozen base."""
    train: TrainSpec = field(default_factory=TrainSpec)
    rl: RLSpec | None = None
    """Of a run whose task is `rl`."""
    hardware: HardwareSpec = field(default_factory=HardwareSpec)
    tracking: TrackingSpec = field(default_factory=TrackingSpec)
