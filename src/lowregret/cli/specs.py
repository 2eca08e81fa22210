"""From flags to a `RunSpec`, and flags beside a spec that already stands. Pure: no files, no torch.

Guarantees: a flag is never ignored. It is in the spec, or it is refused by name: because nothing would use it, or
because the spec file or the run that is resumed says otherwise.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import product
from typing import Any, TypeVar

from lowregret.cli.flags import Plan, Sft, SlotFlags, TrainFlags
from lowregret.errors import SpecError
from lowregret.specs import (
    AdapterSpec,
    DataSpec,
    FullSpec,
    HardwareSpec,
    ModelSpec,
    OptimSpec,
    RunSpec,
    SlotSpec,
    TrackingSpec,
    TrainSpec,
)
from lowregret.specs.codec import to_dict

Number = TypeVar("Number", int, float)


def spec_of(command: Sft | Plan) -> RunSpec:
    """The spec that the flags alone describe; without slots where a rank is still to be suggested.

    Raises:
        SpecError: the model or the data is missing, a list can't be read, or a flag would have no effect.
    """
    if command.model.model is None:
        raise SpecError("--model: is missing; give a hub id, a folder, a .gguf file or smollm2-135m")
    task = (command.task if isinstance(command, Plan) else None) or RunSpec.task
    model, data = ModelSpec(source=command.model.model), DataSpec(source=_source(command))
    base = RunSpec(task=task, model=model, data=data, slots=())
    return _overlay(base, command, slots_of(command.slots, ranks_of(command.slots)))


def refuse_changes(spec: RunSpec, command: Sft | Plan, *, where: str, remedy: str) -> None:
    """Check that the flags beside a spec say nothing else than the spec.

    Raises:
        SpecError: a flag differs, named by the field that it would change.
    """
    slots = spec.slots
    if given(command.slots):
        if command.slots.rank is None and not command.slots.full:
            flag = next(iter(given(command.slots)))
            raise SpecError(f"{flag_name(flag)}: the slots are those of {where}; {remedy}")
        slots = slots_of(command.slots, ranks_of(command.slots))
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


def given(flags: object) -> dict[str, Any]:
    """The fields of a group of flags that the user gave.

    >>> given(SlotFlags(rank="8"))
    {'rank': '8'}
    """
    fields = dataclasses.fields(flags)  # pyright: ignore[reportArgumentType]
    values = {field.name: getattr(flags, field.name) for field in fields}
    return {name: value for name, value in values.items() if value is not None and value is not False}


def flag_name(field: str) -> str:
    """
    >>> flag_name("full_lr")
    '--full-lr'
    """
    return "--" + field.replace("_", "-")


def short(value: float) -> str:
    """A learning rate as a slot's name has it, the same for every spelling of the number.

    >>> short(0.0003), short(1.5e-4), short(1e-4)
    ('3e-4', '1.5e-4', '1e-4')
    """
    number = Decimal(repr(value))
    if not number.is_finite():
        return repr(value)
    _, digits, _ = number.normalize().as_tuple()
    mantissa = "".join(map(str, digits))
    point = f"{mantissa[0]}.{mantissa[1:]}" if len(mantissa) > 1 else mantissa
    sign = "-" if number < 0 else ""
    return f"{sign}{point}e{number.adjusted()}"


def _source(command: Sft | Plan) -> str:
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


def _overlay(base: RunSpec, command: Sft | Plan, slots: tuple[SlotSpec, ...]) -> RunSpec:
    """The base with every given flag in its place."""
    model = given(command.model)
    data = given(command.data)
    if "columns" in data:
        data["columns"] = _columns(data["columns"])
    tracker = command.track if isinstance(command, Sft) else None
    return replace(
        base,
        model=_renamed(base.model, model, {"model": "source"}),
        data=_renamed(base.data, data, {"data": "source", "test_data": "test_source", "data_seed": "seed"}),
        slots=slots,
        train=_train(base.train, command.train),
        hardware=_hardware(base.hardware, given(command.hardware)),
        tracking=base.tracking if tracker is None else replace(base.tracking, tracker=tracker),
    )


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


def bytes_of(text: str) -> int:
    """A size as people write it.

    >>> bytes_of("24GiB") == 24 << 30, bytes_of("1.5 GB"), bytes_of("800M")
    (True, 1500000000, 800000000)

    Raises:
        SpecError: it is no number with a unit.
    """
    match = re.fullmatch(r"([0-9.]+)\s*([kmgt]?)(i?)b?", text.strip().lower())
    try:
        number = float(match[1]) if match and match[2] else 0.0
    except ValueError:
        number = 0.0
    if match is None or number <= 0:
        raise SpecError(f"--memory: {text!r} is no size; write it as 24GiB or 800MiB")
    return round(number * (1024 if match[3] else 1000) ** (1 + "kmgt".index(match[2])))


def items(field: str, text: str | None) -> tuple[str, ...]:
    """The items of a list such as `1,8,64`; none where the flag was not given.

    Raises:
        SpecError: an item is empty.
    """
    if text is None:
        return ()
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise SpecError(f"{flag_name(field)}: {text!r} has an empty item; separate the items by single commas")
    return parts


def numbers(field: str, text: str | None, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """The numbers of a list such as `1,8,64`.

    Raises:
        SpecError: an item is no number of that kind.
    """
    found: list[Number] = []
    for item in items(field, text):
        try:
            found.append(kind(item))
        except ValueError as error:
            wanted = "whole numbers such as 1,8,64" if kind is int else "numbers such as 1e-4,3e-4"
            raise SpecError(f"{flag_name(field)}: {item!r} is no number of the kind wanted; give {wanted}") from error
    return tuple(found)


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
