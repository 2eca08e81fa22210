"""What the text of a flag says: lists, numbers, sizes, and which flags were given at all. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

from lowregret.errors import SpecError

Number = TypeVar("Number", int, float)


def given(flags: object) -> dict[str, Any]:
    """The fields of a group of flags that the user gave.

    >>> from lowregret.cli.flag_groups import SlotFlags
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
