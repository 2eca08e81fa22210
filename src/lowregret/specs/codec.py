"""TOML in and out for trees of frozen dataclasses.

Guarantees: `from_toml(cls, to_toml(spec)) == spec`, floats to the last bit; an unknown key, a missing one and a value
of the wrong type are a `SpecError` that names the dotted key. None is written by absence; a choice between
dataclasses carries a `kind` (`AdapterSpec` is `adapter`, `FullSpec` is `full`). Every field is written, defaults
too, so that a file stays what it was when a default changes. The text itself is written by `specs.toml_text`.

Ranges (a rank of 0, a NaN learning rate) are the planner's to judge: here only form counts.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from lowregret.errors import SpecError
from lowregret.specs.toml_text import TomlTable, TomlValue, dumps

Spec = TypeVar("Spec")

KIND = "kind"
"""Key that tells which member of a union of dataclasses a table is."""


def to_toml(spec: object) -> str:
    """The spec as TOML text.

    >>> from lowregret.specs import ModelSpec
    >>> print(to_toml(ModelSpec(source="smollm2-135m")), end="")
    source = "smollm2-135m"
    """
    return dumps(to_dict(spec))


def from_toml(cls: type[Spec], text: str) -> Spec:
    """The spec that the text holds; the inverse of `to_toml`.

    >>> from lowregret.specs import OptimSpec
    >>> from_toml(OptimSpec, "lr = 3e-4").lr
    0.0003
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"not valid TOML: {error}; mend the line") from error
    return from_dict(cls, data)


def read_toml(cls: type[Spec], path: str | Path) -> Spec:
    """The spec in a file; errors name the file too."""
    data = read_table(path)
    try:
        return from_dict(cls, data)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def read_table(path: str | Path) -> dict[str, Any]:
    """A TOML file as plain dicts, lists and scalars.

    Raises:
        SpecError: it can't be read or is no TOML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: can't be read ({error.strerror}); give the path of a TOML file") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}; mend the line") from error


def to_dict(spec: object) -> TomlTable:
    """The spec as plain dicts, lists and scalars, without the fields that are None."""
    if not dataclasses.is_dataclass(spec) or isinstance(spec, type):
        raise SpecError(f"{spec!r} is not a spec; give an instance of a dataclass")
    return _encode_table(spec, "")


def from_dict(cls: type[Spec], data: Mapping[str, object]) -> Spec:
    """The spec that plain dicts, lists and scalars describe; the inverse of `to_dict`."""
    return cast(Spec, _decode_table(cls, data, "", tag=None))


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    """Types of a dataclass's fields, looked up once: a study reads thousands of specs."""
    return get_type_hints(cls)


def _encode_table(spec: object, path: str) -> TomlTable:
    hints = _hints(type(spec))
    table: TomlTable = {}
    for field in dataclasses.fields(cast(Any, spec)):
        value = getattr(spec, field.name)
        where = _join(path, field.name)
        if value is None and type(None) in _members(hints[field.name]):
            # Absence is read back as the default, so it may stand for None only where None is the default.
            if field.default is not None:
                raise SpecError(f"{where}: None can't be written because the default is not None; give a value")
            continue
        table[field.name] = _encode(hints[field.name], value, where)
    return table


def _encode(hint: Any, value: object, path: str) -> TomlValue:
    members = [member for member in _members(hint) if member is not type(None)]
    choices = [member for member in members if dataclasses.is_dataclass(member)]
    if choices:
        if type(value) not in choices:
            raise _wrong_type(path, hint, value)
        table = _encode_table(value, path)
        return table if len(choices) == 1 else {KIND: _kind(type(value)), **table}
    origin, args = get_origin(members[0]), get_args(members[0])
    if origin is tuple:
        if not isinstance(value, tuple):
            raise _wrong_type(path, hint, value)
        values = cast("tuple[object, ...]", value)
        return [_encode(item_hint, item, where) for item_hint, item, where in _items(args, values, path)]
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong_type(path, hint, value)
        entries = cast(dict[str, object], value)
        return {key: _encode(args[1], entry, _join(path, key)) for key, entry in entries.items()}
    return _scalar(hint, value, path)


def _decode_table(cls: type[Any], data: object, path: str, *, tag: str | None) -> object:
    if not isinstance(data, Mapping):
        raise SpecError(f"{path}: is {_describe(data)}, should be a table of {cls.__name__}")
    hints = _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values: dict[str, object] = {}
    for key, value in cast(Mapping[str, object], data).items():
        if key == tag:
            continue
        if key not in fields:
            raise SpecError(f"{_join(path, key)}: unknown key; the nearest known one is `{_nearest(key, fields)}`")
        values[key] = _decode(hints[key], value, _join(path, key))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise SpecError(f"{_join(path, name)}: is missing; {cls.__name__} needs it")
    return cls(**values)


def _decode(hint: Any, value: object, path: str) -> object:
    members = [member for member in _members(hint) if member is not type(None)]
    choices = [member for member in members if dataclasses.is_dataclass(member)]
    if len(choices) == 1:
        return _decode_table(cast(type[Any], choices[0]), value, path, tag=None)
    if choices:
        return _decode_choice(cast(list[type[Any]], choices), value, path)
    origin, args = get_origin(members[0]), get_args(members[0])
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong_type(path, hint, value)
        items = cast(list[object], value)
        return tuple(_decode(item_hint, item, where) for item_hint, item, where in _items(args, items, path))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong_type(path, hint, value)
        entries = cast(Mapping[str, object], value)
        return {key: _decode(args[1], entry, _join(path, key)) for key, entry in entries.items()}
    return _scalar(hint, value, path)


def _decode_choice(choices: list[type[Any]], value: object, path: str) -> object:
    by_kind = {_kind(choice): choice for choice in choices}
    known = " or ".join(f'"{kind}"' for kind in by_kind)
    if not isinstance(value, Mapping):
        raise SpecError(f"{path}: is {_describe(value)}, should be a table with kind = {known}")
    table = cast(Mapping[str, object], value)
    if KIND not in table:
        raise SpecError(f"{_join(path, KIND)}: is missing; it says what the table is: {known}")
    kind = table[KIND]
    if not isinstance(kind, str) or kind not in by_kind:
        raise SpecError(f"{_join(path, KIND)}: is {_describe(kind)}, should be {known}")
    return _decode_table(by_kind[kind], table, path, tag=KIND)


def _scalar(hint: Any, value: object, path: str) -> bool | int | float | str:
    """The value checked against a scalar hint; an int where only a float is known becomes one."""
    members = [member for member in _members(hint) if member is not type(None)]
    for member in members:
        if get_origin(member) is Literal and any(type(value) is type(arg) and value == arg for arg in get_args(member)):
            return cast("bool | int | float | str", value)
        # `type` and not `isinstance`, because True is an int to Python and a mistake in a spec.
        if type(value) is member and isinstance(value, bool | int | float | str):
            return value
    if float in members and type(value) is int:
        return _exact_float(value, path)
    raise _wrong_type(path, hint, value)


def _exact_float(value: int, path: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise SpecError(f"{path}: is an integer beyond any float; give a smaller number") from error


def _items(args: tuple[Any, ...], items: Iterable[object], path: str) -> list[tuple[Any, object, str]]:
    """Type, value and dotted name of each item of a tuple."""
    values = list(items)
    if len(args) == 2 and args[1] is Ellipsis:
        hints = [args[0]] * len(values)
    elif len(args) == len(values):
        hints = list(args)
    else:
        raise SpecError(f"{path}: has {len(values)} items, should have {len(args)}")
    return [(hint, value, f"{path}[{i}]") for i, (hint, value) in enumerate(zip(hints, values, strict=True))]


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _kind(cls: type[Any]) -> str:
    return cls.__name__.removesuffix("Spec").lower()


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _nearest(key: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)[0]


def _wrong_type(path: str, hint: Any, value: object) -> SpecError:
    return SpecError(f"{path}: is {_describe(value)}, should be {_expected(hint)}")


def _expected(hint: Any) -> str:
    """A type as a user of TOML would say it."""
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    said: list[str] = []
    for member in _members(hint):
        if member is type(None):
            continue
        origin = get_origin(member)
        if origin is Literal:
            said.extend(repr(arg) for arg in get_args(member))
        elif origin is tuple:
            said.append("a list")
        elif origin is dict or dataclasses.is_dataclass(member):
            said.append("a table")
        else:
            said.append(names[member])
    return " or ".join(said)


def _describe(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
