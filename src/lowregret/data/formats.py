"""Rows of the field's usual formats as conversations.

`detect` finds the format from the columns; `converter` gives the function from a row to a `Conversation`. A column that
is missing or of the wrong type is an error that names row and column; None and NaN are missing values, read as empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from lowregret.data.conversations import ROLES, Conversation, Message, Role
from lowregret.errors import DataError

Row = Mapping[str, Any]
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
TOOL_CALLS = ("tool_calls", "function_call")
"""Keys of a turn that hold what it asks of tools."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt-completion": ("prompt", "completion"),
    "question-answer": ("question", "answer"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
"""Format -> columns that it needs, in the order in which formats are tried."""
OPTIONAL_COLUMNS: dict[str, tuple[str, ...]] = {"sharegpt": ("system",), "instruction": ("input", "system")}
"""Format -> columns that it reads where they are there."""


def detect(columns: Sequence[str], where: str) -> str:
    """The first format whose columns are all there.

    Raises:
        DataError: none fits.
    """
    for name, needed in COLUMNS.items():
        if set(needed) <= set(columns):
            return name
    known = "; ".join(f"{name}: {', '.join(needed)}" for name, needed in COLUMNS.items())
    raise DataError(
        f"{where}: no known format has the columns {', '.join(sorted(columns)) or '(none)'}; "
        f"rename some with --columns, or use one of: {known}"
    )


def converter(name: str, renames: Sequence[tuple[str, str]], where: str) -> Callable[[int, Row], Conversation]:
    """A function from (row number, row) to a conversation.

    Args:
        renames: (column of the format, column of the data).
        where: name of the data in messages.
    """
    given = dict(renames)
    known = (*COLUMNS[name], *OPTIONAL_COLUMNS.get(name, ()))
    unknown = set(given) - set(known)
    if unknown:
        raise DataError(f"{where}: format {name!r} has no column {min(unknown)!r}; it has {', '.join(known)}")

    def convert(number: int, row: Row) -> Conversation:
        return Conversation(messages=tuple(_BUILDERS[name](_Fields(row, given, where, number))))

    return convert


class _Fields:
    """Access to a row's columns that names what is wrong."""

    def __init__(self, row: Row, renames: Mapping[str, str], where: str, number: int) -> None:
        self.row, self.renames = row, renames
        self.where = f"{where}, row {number}"

    def raw(self, column: str) -> Any:
        actual = self.renames.get(column, column)
        if actual not in self.row:
            found = ", ".join(map(str, self.row)) or "none"
            raise DataError(
                f"{self.where}: column {actual!r} is missing; it has {found}; add it, or rename one with --columns"
            )
        return None if _is_nan(self.row[actual]) else self.row[actual]

    def text(self, column: str) -> str:
        value = self.raw(column)
        if value is None:
            return ""
        if not isinstance(value, str | int | float):
            raise DataError(f"{self.where}: column {self._actual(column)} holds {type(value).__name__}, text is needed")
        return str(value)

    def optional(self, column: str) -> str:
        """Text of a column that need not be there, unless it was renamed: who names a column means one that is."""
        return self.text(column) if column in self.renames or column in self.row else ""

    def system(self) -> list[Message]:
        """A system turn from the column of that name, where it holds something."""
        content = self.optional("system")
        return [Message(role="system", content=content)] if content.strip() else []

    def _actual(self, column: str) -> str:
        return repr(self.renames.get(column, column))

    def turns(self, column: str, role_key: str, text_key: str, roles: Mapping[str, str]) -> list[Message]:
        """A list of turns; nothing at all is an empty one."""
        value = self.raw(column)
        if value is None:
            return []
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise DataError(
                f"{self.where}: column {self._actual(column)} holds {type(value).__name__}, a list of turns is needed"
            )
        messages: list[Message] = []
        for index, turn in enumerate(cast("Sequence[Any]", value)):
            if not isinstance(turn, Mapping) or role_key not in turn or text_key not in turn:
                raise DataError(
                    f"{self.where}: turn {index} of {column!r} needs the keys {role_key!r} and {text_key!r}"
                )
            fields = cast("Mapping[str, Any]", turn)
            role = roles.get(str(fields[role_key]))
            if role is None:
                raise DataError(
                    f"{self.where}: turn {index} of {column!r} has the role {fields[role_key]!r}; "
                    f"known: {', '.join(roles)}"
                )
            content = self._content(fields[text_key], column, index)
            calls = role == "assistant" and any(_is_there(fields.get(key)) for key in TOOL_CALLS)
            messages.append(Message(role=cast(Role, role), content=content, calls_tools=calls))
        return messages

    def _content(self, value: Any, column: str, index: int) -> str:
        if isinstance(value, str):
            return value
        if value is None or _is_nan(value):
            return ""
        if isinstance(value, Sequence):
            parts = cast("Sequence[Any]", value)
            if all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
                return "".join(part["text"] for part in parts)
        raise DataError(
            f"{self.where}: turn {index} of {column!r} holds {type(value).__name__}, text or text parts are needed"
        )


def _is_nan(value: Any) -> bool:
    """How tables write a missing cell where a column holds numbers."""
    return isinstance(value, float) and math.isnan(value)


def _is_there(value: Any) -> bool:
    """Whether an optional key of a turn says anything; tables write all their keys into every turn."""
    return bool(value) and not _is_nan(value)


def _messages(fields: _Fields) -> list[Message]:
    return fields.turns("messages", "role", "content", {role: role for role in ROLES if role != "text"})


def _sharegpt(fields: _Fields) -> list[Message]:
    turns = fields.turns("conversations", "from", "value", SHAREGPT_ROLES)
    return [*fields.system(), *turns] if turns and turns[0].role != "system" else turns


def _prompt_completion(fields: _Fields) -> list[Message]:
    if isinstance(fields.raw("prompt"), Sequence) and not isinstance(fields.raw("prompt"), str):
        roles = {role: role for role in ROLES if role != "text"}
        prompt = fields.turns("prompt", "role", "content", roles)
        if isinstance(fields.raw("completion"), str):
            return [*prompt, Message(role="assistant", content=fields.text("completion"))]
        return [*prompt, *fields.turns("completion", "role", "content", roles)]
    return _pair(fields.text("prompt"), fields.text("completion"))


def _question_answer(fields: _Fields) -> list[Message]:
    return _pair(fields.text("question"), fields.text("answer"))


def _instruction(fields: _Fields) -> list[Message]:
    instruction = fields.text("instruction")
    extra = fields.optional("input")
    prompt = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return [*fields.system(), *_pair(prompt, fields.text("output"))]


def _text(fields: _Fields) -> list[Message]:
    return [Message(role="text", content=fields.text("text"))]


def _pair(prompt: str, completion: str) -> list[Message]:
    return [Message(role="user", content=prompt), Message(role="assistant", content=completion)]


_BUILDERS: dict[str, Callable[[_Fields], list[Message]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt-completion": _prompt_completion,
    "question-answer": _question_answer,
    "instruction": _instruction,
    "text": _text,
}
