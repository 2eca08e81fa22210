"""A study: questions about LoRA and full fine-tuning that are answered by training many cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lowregret.specs.data import DataSpec
from lowregret.specs.hardware import HardwareSpec
from lowregret.specs.model import ModelSpec
from lowregret.specs.rl import RLSpec
from lowregret.specs.run import TrainSpec

QUARTER_DECADE = 10**0.25


@dataclass(frozen=True, kw_only=True)
class GridSpec:
    """Which learning rates each arm is trained at.

    >>> GridSpec().kind
    'adaptive'
    """

    kind: Literal["adaptive", "paper", "fixed"] = "adaptive"
    """`adaptive` starts at the planner's rate and follows the minimum; `paper` gives each arm the same `points` rates
    around the planner's; `fixed` takes `rates` as they are."""
    rates: tuple[float, ...] = ()
    """Learning rates of a `fixed` grid."""
    full_rates: tuple[float, ...] = ()
    """Those of full fine-tuning on a `fixed` grid. Empty: `rates`."""
    start: float | None = None
    """Where adapters begin on an `adaptive` or `paper` grid. None: the planner's rate; small models lie far from it."""
    full_start: float | None = None
    """The same of full fine-tuning."""
    factor: float = QUARTER_DECADE
    """Between neighbouring rates. A quarter of a decade is the coarsest that a quadratic in log LR follows."""
    points: int = 6
    """Rates of an arm on a `paper` grid (the paper's guide: six)."""
    most_points: int = 9
    """Rates of an arm after which an `adaptive` grid stops, whatever it has found."""
    width: float = 0.35
    """Half-width of the 95 % interval on log LR* that an `adaptive` grid is content with (0.35: a factor of 1.4)."""


@dataclass(frozen=True, kw_only=True)
class QuestionSpec:
    """One experiment: a protocol of science.md section 4 with its arms.

    >>> QuestionSpec(protocol="rank", data=DataSpec(source="facts")).seeds
    (0, 1, 2)
    """

    protocol: str
    """`rank`, `learning-rate`, `batch-size`, `layers`, `early`, `ratio`, `capacity`, `cost`, `invariance`, `dynamics`,
    `fidelity` or `certify`; `rl` and `rl-layers` train by reinforcement and hold error rates where the others hold
    losses."""
    data: DataSpec
    """Of an `rl` question the prompts with their answers."""
    train: TrainSpec = field(default_factory=TrainSpec)
    """Length, batch and rhythm of a cell."""
    models: tuple[ModelSpec, ...] = ()
    """Bases of this question. Empty: the study's."""
    ranks: tuple[int, ...] = (1, 4, 16, 64)
    """Ranks of the adapters; `certify`, `layers` and `rl-layers` take the first."""
    alphas: tuple[float, ...] = (32.0,)
    batch_sizes: tuple[int, ...] = ()
    """Sequences a step, for `batch-size`."""
    run_lengths: tuple[int, ...] = ()
    """Steps, for `ratio` and `fidelity`."""
    bits_per_example: float = 0.0
    """For `capacity`: what an example of the data holds that only memory can tell (64 for `micro-facts`)."""
    loads: tuple[float, ...] = ()
    """For `capacity`: bits offered to each adapter parameter. Each load is a data set of its own size."""
    support: Literal["all", "matched"] = "matched"
    """What full fine-tuning trains: the matrices that the adapters adapt, so that embeddings do not decide."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the adapters and of the data order; arms are paired by them."""
    grid: GridSpec = field(default_factory=GridSpec)
    margins: tuple[tuple[str, float], ...] = ()
    """Margins that differ from science.md's, by name; set before the study runs."""
    rl: RLSpec | None = None
    """For `rl` and `rl-layers`: groups, rewards, sampler and objective."""


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """A study: one base, one machine, some questions. `lowregret study study.toml` runs it.

    >>> question = QuestionSpec(protocol="rank", data=DataSpec(source="facts"))
    >>> StudySpec(name="mine", model=ModelSpec(source="micro"), questions=(question,)).workers
    1
    """

    name: str
    model: ModelSpec
    questions: tuple[QuestionSpec, ...]
    hardware: HardwareSpec = field(default_factory=HardwareSpec)
    """Of each worker; `threads` are those of one worker."""
    workers: int = 1
    """Processes that train banks side by side. Small bases are faster with one thread in each of several workers."""
    slots_per_bank: int | None = None
    """LoRA cells that train in one pass. None: as many as memory takes, at most 32."""
    budget_seconds: float | None = None
    """No new bank starts after this many seconds of training. None: no limit."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One condition of a study: everything that is fixed while learning rate and seed vary.

    >>> Arm(method="lora", rank=8, params=4096, batch_size=8, steps=100).label
    'r8'
    """

    method: Literal["lora", "full"]
    rank: int | None = None
    """None for full fine-tuning."""
    alpha: float = 32.0
    targets: tuple[str, ...] = ("all",)
    params: int
    """Trained parameters."""
    batch_size: int
    """Sequences a step."""
    steps: int
    """Optimizer steps of the whole run."""
    width: int = 0
    """Hidden size of the base."""
    variant: str = ""
    """What else sets the arm apart: `equal steps`, `alpha = r`, `load 200`."""
    multiply_adds: float = 0.0
    """Counted, of one training token (`planner.flops`); 0 where nobody counted."""
    offered_bits: float = 0.0
    """Bits that its training data holds and that nothing but memory can tell; 0 where the data is not of that kind."""

    @property
    def label(self) -> str:
        """Short name for tables and curves; unique within a study that varies only method, rank and targets."""
        parts = ["full" if self.method == "full" else f"r{self.rank}"]
        if self.targets != ("all",):
            parts.append("+".join(self.targets))
        if self.alpha != 32.0:
            parts.append(f"alpha {self.alpha:g}")
        if self.variant:
            parts.append(self.variant)
        return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """One cell that a question asked for.

    >>> arm = Arm(method="lora", rank=8, params=1, batch_size=8, steps=2)
    >>> PlannedCell(cell="a1", question=0, arm=arm, lr=1e-3, seed=0).seed
    0
    """

    cell: str
    """Identity: hash of the canonical spec with the contents of model and data (`specs.identity`)."""
    question: int
    """Index in the study's questions. Two questions may ask for the same cell; it is trained once."""
    arm: Arm
    lr: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class PlannedBank:
    """Cells that train together; fixed before the first of them starts, because sums depend on it.

    >>> PlannedBank(bank="b1", cells=("a1", "a2")).cells
    ('a1', 'a2')
    """

    bank: str
    cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """`plan.toml` of a study: what was asked so far and what trains together. It only grows.

    >>> StudyPlan().banks
    ()
    """

    cells: tuple[PlannedCell, ...] = ()
    banks: tuple[PlannedBank, ...] = ()
