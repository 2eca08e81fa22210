"""A small TOML writer; the standard library only reads.

Guarantee: `tomllib.loads(dumps(table)) == table` for tables of strings, bools, ints, floats, lists and tables.
"""

from __future__ import annotations

import re
from typing import TypeAlias, TypeGuard

from lowregret.errors import SpecError

TomlValue: TypeAlias = "bool | int | float | str | list[TomlValue] | TomlTable"
TomlTable: TypeAlias = "dict[str, TomlValue]"

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def dumps(table: TomlTable) -> str:
    """The table as TOML, scalars before sub-tables at each level, in the order of the keys.

    >>> print(dumps({"a": 1e-12, "b": {"c": [1, 2]}, "d": [{"e": "x"}]}), end="")
    a = 1e-12
    <BLANKLINE>
    [b]
    c = [1, 2]
    <BLANKLINE>
    [[d]]
    e = "x"
    """
    lines: list[str] = []
    _write_table(lines, table, "")
    return "\n".join(lines).strip("\n") + "\n"


def _write_table(lines: list[str], table: TomlTable, path: str) -> None:
    for key, value in table.items():
        if not isinstance(value, dict) and not _is_array_of_tables(value):
            lines.append(f"{_key(key)} = {_inline(value)}")
    for key, value in table.items():
        name = f"{path}.{_key(key)}" if path else _key(key)
        if isinstance(value, dict):
            lines.extend(["", f"[{name}]"])
            _write_table(lines, value, name)
        elif _is_array_of_tables(value):
            for item in value:
                lines.extend(["", f"[[{name}]]"])
                _write_table(lines, item, name)


def _is_array_of_tables(value: TomlValue) -> TypeGuard[list[TomlTable]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _inline(value: TomlValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_inline(item)}" for key, item in value.items()) + "}"
    # repr is the shortest text that reads back to the same bits; inf and nan are spelt as TOML spells them.
    return repr(value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    pieces: list[str] = []
    for char in text:
        if char in _ESCAPES:
            pieces.append(_ESCAPES[char])
        elif char < " " or char == "\x7f":
            pieces.append(f"\\u{ord(char):04x}")
        elif "\ud800" <= char <= "\udfff":
            raise SpecError(f"{text!r} is not valid Unicode and can't be written; rename it")
        else:
            pieces.append(char)
    return '"' + "".join(pieces) + '"'
