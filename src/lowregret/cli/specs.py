"""From flags to a `RunSpec`, and flags beside a spec that already stands. Pure: no files, no torch.

Guarantees: a flag is never ignored. It is in the spec, or it is refused by name: because nothing would use it, or
because the spec file or the run that is resumed says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, TypeVar

from lowregret.cli.flag_groups import SlotFlags, TrainFlags
from lowregret.cli.flags import Plan, Rl, Sft
from lowregret.cli.reading import bytes_of, flag_name, given, items, numbers, short
from lowregret.cli.rl_specs import overlay_rl, with_presets
from lowregret.errors import SpecError
from lowregret.specs import (
    AdapterSpec,
    DataSpec,
    FullSpec,
    HardwareSpec,
    ModelSpec,
    OptimSpec,
    RLSpec,
    RunSpec,
    SlotSpec,
    TrackingSpec,
    TrainSpec,
)
from lowregret.specs.codec import to_dict

RL_RANKS = (1,)
"""Of a run of RL that names none: a policy-gradient episode carries O(1) bits, which the smallest adapter holds."""


def spec_of(command: Sft | Rl | Plan) -> RunSpec:
    """The spec that the flags alone describe; without slots where a rank is still to be suggested.

    Raises:
        SpecError: the model or the data is missing, a list can't be read, or a flag would have no effect.
    """
    if command.model.model is None:
        raise SpecError("--model: is missing; give a hub id, a folder, a .gguf file or smollm2-135m")
    task = task_of(command)
    model, data = ModelSpec(source=command.model.model), DataSpec(source=_source(command))
    rl = RLSpec(rewards=()) if task == "rl" else None
    base = RunSpec(task=task, model=model, data=data, slots=(), rl=rl)
    spec = _overlay(base, command, _slots(command))
    if isinstance(command, Rl) and spec.rl is not None and not spec.rl.rewards:
        raise SpecError("--reward: is missing; give math, exact, reasoning-gym or path/to/file.py:function")
    return spec


def task_of(command: Sft | Rl | Plan) -> str:
    """What a command without a spec file trains by."""
    if isinstance(command, Plan):
        return command.task or RunSpec.task
    return "rl" if isinstance(command, Rl) else "sft"


def refuse_changes(spec: RunSpec, command: Sft | Rl | Plan, *, where: str, remedy: str) -> None:
    """Check that the flags beside a spec say nothing else than the spec.

    Raises:
        SpecError: a flag differs, named by the field that it would change.
    """
    slots = spec.slots
    if given(command.slots):
        if not _slots(command):
            flag = next(iter(given(command.slots)))
            raise SpecError(f"{flag_name(flag)}: the slots are those of {where}; {remedy}")
        slots = _slots(command)
    wanted = _overlay(spec, command, slots)
    difference = _first_difference(to_dict(spec), to_dict(wanted))
    if difference is not None:
        key, stands, asked = difference
        raise SpecError(f"{key}: the flags say {asked!r}, {where} says {stands!r}; {remedy}")


def slots_of(flags: SlotFlags, ranks: Sequence[int]) -> tuple[SlotSpec, ...]:
    """Every rank with every learning rate, then the full weights where asked for.

    >>> [slot.name for slot in slots_of(SlotFlags(lr="1e-4,3e-4"), [8])]
    ['r8-lr1e-4', 'r8-lr3e-4']
    """
    _refuse_idle(flags, adapters=bool(ranks))
    seed = flags.seed or 0
    targets = items("targets", flags.targets) or ("all",)
    alpha = AdapterSpec(rank=1).alpha if flags.alpha is None else flags.alpha
    slots: list[SlotSpec] = []
    rates = numbers("lr", flags.lr, float)
    for rank, lr in product(ranks, rates or (None,)):
        weights = AdapterSpec(rank=rank, alpha=alpha, targets=targets, unembed=flags.unembed, init_seed=seed)
        slots.append(_slot(f"r{rank}", weights, lr, many=len(rates) > 1, seed=seed))
    full_rates = numbers("full_lr", flags.full_lr, float)
    for lr in (full_rates or (None,)) if flags.full else ():
        support = flags.support or "all"
        full = FullSpec(support=support, targets=targets, unembed=flags.unembed, rounding_seed=seed)
        slots.append(_slot("full", full, lr, many=len(full_rates) > 1, seed=seed))
    return tuple(slots)


def ranks_of(flags: SlotFlags) -> tuple[int, ...]:
    """The ranks of `--rank`; empty where it was not given.

    >>> ranks_of(SlotFlags(rank="1,8"))
    (1, 8)
    """
    return numbers("rank", flags.rank, int)


def _slots(command: Sft | Rl | Plan) -> tuple[SlotSpec, ...]:
    """The slots that the flags name; in RL rank 1 where they name none."""
    ranks = ranks_of(command.slots)
    if isinstance(command, Rl) and not command.slots.full:
        ranks = ranks or RL_RANKS
    return slots_of(command.slots, ranks)


def _source(command: Sft | Rl | Plan) -> str:
    if command.data.data is not None:
        return command.data.data
    if isinstance(command, Plan) and command.tokens is not None:
        return f"{command.tokens} tokens"
    raise SpecError("--data: is missing; give a hub id, a file, facts or reasoning-gym:<task>")


def _slot(kind: str, weights: AdapterSpec | FullSpec, lr: float | None, *, many: bool, seed: int) -> SlotSpec:
    name = f"{kind}-lr{short(lr)}" if many and lr is not None else kind
    return SlotSpec(name=name, weights=weights, optim=OptimSpec(lr=lr), data_seed=seed)


def _refuse_idle(flags: SlotFlags, *, adapters: bool) -> None:
    """Refuse slot flags that nothing would use."""
    idle: dict[str, str] = {}
    if not flags.full:
        idle |= dict.fromkeys(("full_lr", "support"), "add --full")
    elif not adapters:
        idle |= {"lr": "give --full-lr, or add --rank", "alpha": "add --rank"}
        if flags.support != "matched":
            idle |= dict.fromkeys(("targets", "unembed"), "add --rank or --support matched")
    for name in given(flags):
        # No adapters and no --full: the rank is still to be suggested, and will use the rest.
        if name in idle:
            raise SpecError(f"{flag_name(name)}: nothing here would use it; {idle[name]}, or leave it out")


def _overlay(base: RunSpec, command: Sft | Rl | Plan, slots: tuple[SlotSpec, ...]) -> RunSpec:
    """The base with every given flag in its place, and what the short name of the data stands for."""
    model = given(command.model)
    data = given(command.data)
    if "columns" in data:
        data["columns"] = _columns(data["columns"])
    tracker = None if isinstance(command, Plan) else command.track
    timeout = None if isinstance(command, Sft) else command.rollouts.reward_timeout
    wanted = replace(
        base,
        model=_renamed(base.model, model, {"model": "source"}),
        data=_renamed(base.data, data, {"data": "source", "test_data": "test_source", "data_seed": "seed"}),
        slots=slots,
        rl=base.rl if isinstance(command, Sft) else _rl(base, command),
        train=_train(base.train, command.train),
        hardware=_hardware(base.hardware, given(command.hardware)),
        tracking=base.tracking if tracker is None else replace(base.tracking, tracker=tracker),
    )
    return with_presets(wanted, timeout)


def _rl(base: RunSpec, command: Rl | Plan) -> RLSpec | None:
    flags = {**given(command.rollouts), **given(command.policy)}
    if base.rl is not None:
        return overlay_rl(base.rl, command.rollouts, command.policy)
    if flags:
        raise SpecError(f"{flag_name(next(iter(flags)))}: is for --task rl; add that or leave it out")
    return None


Settings = TypeVar("Settings", ModelSpec, DataSpec, TrainSpec, HardwareSpec, TrackingSpec)


def _renamed(spec: Settings, flags: dict[str, Any], names: dict[str, str]) -> Settings:
    return replace(spec, **{names.get(flag, flag): value for flag, value in flags.items()})


def _train(base: TrainSpec, flags: TrainFlags) -> TrainSpec:
    values = given(flags)
    if "steps" in values and "epochs" in values:
        raise SpecError("--epochs: is not used where --steps is given; leave one of them out")
    schedule = base.schedule
    if "schedule" in values:
        schedule = replace(schedule, kind=values.pop("schedule"))
    if "warmup" in values:
        schedule = replace(schedule, warmup=values.pop("warmup"))
    if "also_eval" in values:
        values["also_eval"] = items("also_eval", values["also_eval"])
    return replace(base, schedule=schedule, **values)


def _hardware(base: HardwareSpec, flags: dict[str, Any]) -> HardwareSpec:
    if "memory" in flags:
        flags["memory_bytes"] = bytes_of(flags.pop("memory"))
    return _renamed(base, flags, {})


def _columns(text: str) -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    for item in items("columns", text):
        role, equals, column = item.partition("=")
        if not (equals and role and column):
            raise SpecError(f"--columns: {item!r} is no role=column; write question=problem,answer=solution")
        pairs.append((role.strip(), column.strip()))
    return tuple(pairs)


def _first_difference(stands: Any, asked: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Dotted key, both values, of the first place where two specs differ."""
    if isinstance(stands, dict) and isinstance(asked, dict):
        pairs = [(key, stands.get(key), asked.get(key)) for key in {**stands, **asked}]
    elif isinstance(stands, list) and isinstance(asked, list) and len(stands) == len(asked):
        pairs = [(str(index), left, right) for index, (left, right) in enumerate(zip(stands, asked, strict=True))]
    else:
        return None if stands == asked else (path, stands, asked)
    for key, left, right in pairs:
        found = _first_difference(left, right, f"{path}.{key}" if path else key)
        if found is not None:
            return found
    return None
