"""Rows of the field's usual formats as conversations.

`detect` finds the format from the columns; `converter` gives the function from a row to a `Conversation`, or None where
the row has nothing to learn from. A column that is missing or of the wrong type is an error that names row and column.
"""

from __future__ import annotations

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

COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt-completion": ("prompt", "completion"),
    "question-answer": ("question", "answer"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
"""Format -> columns that it needs, in the order in which formats are tried."""


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
    unknown = set(given) - {*COLUMNS[name], "input", "system"}
    if unknown:
        raise DataError(
            f"{where}: format {name!r} has no column {sorted(unknown)[0]!r}; it has {', '.join(COLUMNS[name])}"
        )

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
            raise DataError(f"{self.where}: column {actual!r} is missing; it has {', '.join(map(str, self.row))}")
        return self.row[actual]

    def text(self, column: str) -> str:
        value = self.raw(column)
        if value is None:
            return ""
        if not isinstance(value, str | int | float):
            raise DataError(f"{self.where}: column {column!r} holds {type(value).__name__}, text is needed")
        return str(value)

    def has(self, column: str) -> bool:
        return self.renames.get(column, column) in self.row

    def turns(self, column: str, role_key: str, text_key: str, roles: Mapping[str, str]) -> list[Message]:
        value = self.raw(column)
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise DataError(f"{self.where}: column {column!r} holds {type(value).__name__}, a list of turns is needed")
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
            messages.append(Message(role=cast(Role, role), content=self._content(fields[text_key], column, index)))
        return messages

    def _content(self, value: Any, column: str, index: int) -> str:
        if isinstance(value, str):
            return value
        if value is None:
            return ""
        if isinstance(value, Sequence) and all(isinstance(part, Mapping) and "text" in part for part in value):
            return "".join(str(part["text"]) for part in value)
        raise DataError(f"{self.where}: turn {index} of {column!r} holds {type(value).__name__}, text is needed")


def _messages(fields: _Fields) -> list[Message]:
    return fields.turns("messages", "role", "content", {role: role for role in ROLES if role != "text"})


def _sharegpt(fields: _Fields) -> list[Message]:
    return fields.turns("conversations", "from", "value", SHAREGPT_ROLES)


def _prompt_completion(fields: _Fields) -> list[Message]:
    if not isinstance(fields.raw("prompt"), str):
        roles = {role: role for role in ROLES if role != "text"}
        return [
            *fields.turns("prompt", "role", "content", roles),
            *fields.turns("completion", "role", "content", roles),
        ]
    return _pair(fields.text("prompt"), fields.text("completion"))


def _question_answer(fields: _Fields) -> list[Message]:
    return _pair(fields.text("question"), fields.text("answer"))


def _instruction(fields: _Fields) -> list[Message]:
    instruction = fields.text("instruction")
    extra = fields.text("input") if fields.has("input") else ""
    return _pair(f"{instruction}\n\n{extra}" if extra.strip() else instruction, fields.text("output"))


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
