"""From the command line to a study's spec: a new one, a file's, or what a resumed study grows into."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from pathlib import Path

from lowregret.cli.reading import items, numbers
from lowregret.cli.study_flags import Study
from lowregret.data.micro import FACT_BITS
from lowregret.data.presets import with_preset
from lowregret.errors import CheckpointError, SpecError
from lowregret.specs import (
    DataSpec,
    GridSpec,
    HardwareSpec,
    ModelSpec,
    QuestionSpec,
    RewardSpec,
    RLSpec,
    StudySpec,
    TrainSpec,
)
from lowregret.specs.codec import read_toml
from lowregret.store.study import StudyDirectory
from lowregret.studies.adaptive import PAPER_RANKS
from lowregret.studies.arm_builder import REINFORCED
from lowregret.studies.extend import refuse_other, with_seeds

TOML = ".toml"
NEVER = 1_000_000_000
"""Steps between evaluations where only the last counts."""
CAPACITY_EPOCHS, CAPACITY_LOADS = 300.0, (2.5,)
"""Exposures of each fact, and bits offered to each parameter: more than it is expected to hold (science.md, C6b)."""


def study_spec(command: Study) -> StudySpec:
    """The study that a spec file or the flags describe.

    Raises:
        SpecError: something is missing, or a flag stands beside a spec file.
    """
    if command.what is None:
        raise SpecError("study: is missing; name a protocol such as rank, or a spec file")
    if command.what.endswith(TOML):
        _refuse_flags(command, f"{command.what} says what is asked; leave it out or change the file")
        return read_toml(StudySpec, command.what)
    if command.model is None:
        raise SpecError("--model: is missing; give a hub id, a folder, a .gguf file, smollm2-135m, micro or nano")
    if command.data is None:
        raise SpecError("--data: is missing; give a hub id, a file or a generated set")
    hardware = HardwareSpec(device=command.device or "auto", dtype=command.dtype or "auto", threads=command.threads)
    return StudySpec(
        name=command.what,
        model=ModelSpec(source=command.model),
        questions=(_question(command, command.what),),
        hardware=hardware,
        workers=command.workers or 1,
        budget_seconds=None if command.budget is None else 60 * command.budget,
    )


def _question(command: Study, protocol: str) -> QuestionSpec:
    capacity = protocol == "capacity"
    steps = _steps(command, capacity=capacity)
    batches = numbers("batch_size", command.batch_size, int)
    default = QuestionSpec(protocol=protocol, data=DataSpec(source=command.data or ""))
    data = default.data
    for field in ("max_length", "limit", "validation_size", "test_size"):
        value = getattr(command, field)
        if value is not None:
            data = replace(data, **{field: value})
    data, rl = _rl(command, data)
    if command.seeds is not None and command.seeds < 1:
        raise SpecError(f"--seeds: {command.seeds} must be at least 1; give 3 or more for a verdict")
    return QuestionSpec(
        protocol=protocol,
        data=data,
        train=TrainSpec(
            steps=steps[0] if steps else None,
            epochs=(command.epochs or CAPACITY_EPOCHS) if capacity else 1.0,
            batch_size=batches[0] if batches else TrainSpec().batch_size,
            num_samples=0,
            eval_early=not command.no_curve,
            fidelity_at=_fidelity_at(command),
            eval_every=NEVER if command.no_curve else TrainSpec().eval_every,
        ),
        ranks=numbers("rank", command.rank, int) or (PAPER_RANKS if command.grid == "paper" else default.ranks),
        alphas=numbers("alpha", command.alpha, float) or default.alphas,
        batch_sizes=batches if len(batches) > 1 else (),
        run_lengths=steps if len(steps) > 1 else (),
        loads=(numbers("loads", command.loads, float) or CAPACITY_LOADS) if capacity else (),
        bits_per_example=_bits_per_example(command) if capacity else 0.0,
        support=command.support or default.support,
        seeds=default.seeds if command.seeds is None else tuple(range(command.seeds)),
        grid=_grid(command),
        rl=rl,
    )


def _rl(command: Study, data: DataSpec) -> tuple[DataSpec, RLSpec | None]:
    """What a question of RL has beyond others; the data with what its short name stands for."""
    flags = {name: getattr(command, name) for name in ("reward", "group", "max_new_tokens", "judge_by")}
    if command.what not in REINFORCED:
        for name, value in flags.items():
            if value is not None:
                raise SpecError(f"--{name.replace('_', '-')}: is for {' and '.join(REINFORCED)}; leave it out")
        return with_preset(data)
    rewards = tuple(RewardSpec(source=source) for source in items("reward", command.reward))
    rl = RLSpec(
        rewards=rewards, judge_by=command.judge_by or "greedy", eval_samples=1 if command.judge_by == "sampled" else 0
    )
    rl = replace(rl, group=command.group or rl.group)
    if command.max_new_tokens is not None:
        rl = replace(rl, sampling=replace(rl.sampling, max_new_tokens=command.max_new_tokens))
    data, filled = with_preset(data, rl)
    if filled is None or not filled.rewards:
        raise SpecError(
            "--reward: is missing; say how answers are scored: math, exact, reasoning-gym, file.py:function"
        )
    return data, filled


def _steps(command: Study, *, capacity: bool) -> tuple[int, ...]:
    for name, value in (("epochs", command.epochs), ("loads", command.loads)):
        if value is not None and not capacity:
            raise SpecError(f"--{name}: is for capacity; leave it out")
    if capacity:
        if command.steps is not None:
            raise SpecError("--steps: a capacity study goes by --epochs; leave it out")
        return ()
    if command.steps is None:
        raise SpecError("--steps: is missing; a study compares runs of stated length, such as --steps 150")
    return numbers("steps", command.steps, int)


def _fidelity_at(command: Study) -> tuple[int, ...]:
    """Empty where the protocol is to choose."""
    if command.fidelity_at is not None and command.what != "fidelity":
        raise SpecError("--fidelity-at: is for fidelity; leave it out")
    return numbers("fidelity_at", command.fidelity_at, int)


def _bits_per_example(command: Study) -> float:
    if command.data != "micro-facts":
        raise SpecError(f"--data: what an example of {command.data} holds is not known; capacity takes micro-facts")
    return FACT_BITS


def _grid(command: Study) -> GridSpec:
    rates, full_rates = numbers("lr", command.lr, float), numbers("full_lr", command.full_lr, float)
    kind = command.grid or ("fixed" if rates else "adaptive")
    if kind == "fixed" and not rates:
        raise SpecError("--lr: a fixed grid needs its rates; give --lr 1e-4,3e-4,1e-3")
    if kind != "fixed" and (rates or full_rates):
        raise SpecError(f"--lr: a {kind} grid chooses its own rates; leave --lr out or use --grid fixed")
    if command.what == "capacity" and kind == "adaptive":
        raise SpecError("--lr: is missing; a capacity study chooses by what was stored, such as --lr 3e-3,6e-3,1.2e-2")
    return GridSpec(kind=kind, rates=rates, full_rates=full_rates)


def resumed_spec(command: Study, folder: Path) -> StudySpec:
    """The folder's spec, with what the command adds to it: seeds, or a spec file that asks for more."""
    if command.out is not None:
        raise CheckpointError(f"--out: a resumed study stays in {folder}; leave it out")
    old = StudyDirectory.open(folder).spec
    spec = old
    if command.what is not None and command.what.endswith(TOML):
        spec = read_toml(StudySpec, command.what)
        refuse_other(old, spec, where=command.what)
    remedy = f"{folder} says what is asked; leave it out, or start a new study"
    _refuse_flags(command, remedy, also={"seeds", "workers", "budget"})
    if command.seeds is not None:
        spec = with_seeds(spec, command.seeds)
    budget = spec.budget_seconds if command.budget is None else 60 * command.budget
    return replace(spec, workers=command.workers or spec.workers, budget_seconds=budget)


def _refuse_flags(command: Study, remedy: str, also: Set[str] = frozenset()) -> None:
    """Nothing beside a spec file or a resumed study may ask for something else."""
    allowed = {"what", "out", "resume", "ray", "power", "json", "debug"} | also
    for name, value in vars(command).items():
        if name not in allowed and value is not None and value is not False:
            raise SpecError(f"--{name.replace('_', '-')}: {remedy}")
