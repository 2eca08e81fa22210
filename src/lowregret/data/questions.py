"""Rows as questions with their answers: what is asked of a model in RL, and what its answer is compared with.

The formats are those of supervised training. One thing differs: a row may have no answer, because a scorer of the
user's own, or that of a reasoning task, needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowregret.data.conversations import Conversation, Message
from lowregret.data.formats import COLUMNS, converter, detect
from lowregret.errors import DataError, SpecError
from lowregret.specs import DataSpec

Row = Mapping[str, Any]
ANSWER_COLUMNS = {"prompt-completion": "completion", "question-answer": "answer", "instruction": "output"}
"""Format -> column of the answer, where it has one of its own."""
PLACE = "{question}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a row asks.

    >>> Question(prompt=(Message(role="user", content="2 + 2?"),), answer="4", key="user: 2 + 2?").text
    '2 + 2?'
    """

    prompt: tuple[Message, ...]
    """Turns before the answer."""
    answer: str
    """Content of the assistant's last turn, whole; empty where there is none."""
    key: str
    """What decides the split; the same as in supervised training."""
    calls_tools: bool = False
    """A turn of the assistant asks for tools."""

    @property
    def text(self) -> str:
        """Content of the user's last turn."""
        return next((turn.content for turn in reversed(self.prompt) if turn.role == "user"), "")

    def filled(self, template: str | None) -> tuple[Message, ...]:
        """The turns of the prompt, the user's last one put into the template."""
        if template is None:
            return self.prompt
        place = max(index for index, turn in enumerate(self.prompt) if turn.role == "user")
        asked = self.prompt[place]
        # Not str.format: a template may hold braces of LaTeX.
        turn = replace(asked, content=template.replace(PLACE, asked.content))
        return (*self.prompt[:place], turn, *self.prompt[place + 1 :])


def check_template(template: str | None) -> None:
    """
    Raises:
        SpecError: the template has no place for the question.
    """
    if template is not None and PLACE not in template:
        raise SpecError(f"rl.template {template!r} has no {PLACE} in it, so every prompt would be the same; add it")


class QuestionReader:
    """Turns rows of one data set into questions, and remembers how."""

    def __init__(self, spec: DataSpec, columns: Sequence[str], where: str, *, open_ended: bool) -> None:
        """Args:
        columns: of the first row.
        open_ended: a conversation that does not end with an answer is a question without one.

        Raises:
            DataError: no format fits, or it has no questions.
        """
        self.where, self.columns, self._open_ended = where, tuple(columns), open_ended
        self._renames = dict(spec.columns)
        self.format = _find(spec, columns, where) if spec.format == "auto" else spec.format
        if self.format == "text":
            raise DataError(
                f"{where}: format 'text' holds documents, not questions; name the columns of question and answer: "
                "--columns question=COLUMN,answer=COLUMN"
            )
        self.answer_column = ANSWER_COLUMNS.get(self.format)
        self._convert: Callable[[int, Row], Conversation] = converter(self.format, spec.columns, where)
        self._has_column = False

    def read(self, number: int, row: Row) -> Question:
        """
        Raises:
            DataError: a column is missing or of the wrong type.
        """
        if self.answer_column is not None:
            actual = self._renames.get(self.answer_column, self.answer_column)
            if actual in row:
                self._has_column = True
            else:
                row = {**row, actual: None}
        conversation = self._convert(number, row)
        messages = conversation.messages
        end = max((index for index, turn in enumerate(messages) if turn.role == "assistant"), default=len(messages))
        if self._open_ended and messages and messages[-1].role != "assistant":
            end = len(messages)
        return Question(
            prompt=messages[:end],
            answer=messages[end].content if end < len(messages) else "",
            key=conversation.prompt,
            calls_tools=conversation.calls_tools,
        )

    def check_columns(self) -> None:
        """
        Raises:
            DataError: the answer's column was named, and no row has it.
        """
        if self.answer_column in self._renames and not self._has_column:
            raise DataError(
                f"{self.where}: column {self._renames[self.answer_column]!r} is missing; it has "
                f"{', '.join(self.columns) or 'none'}; name the answer's with --columns {self.answer_column}=COLUMN"
            )

    def how_to_answer(self) -> str:
        """What to do about a data set without answers."""
        if self.answer_column is None:
            return "end each conversation with the assistant's answer"
        return f"name the answer's with --columns {self.answer_column}=COLUMN"


def _find(spec: DataSpec, columns: Sequence[str], where: str) -> str:
    """The format as supervised training would find it, else one of which only the answer's column is missing."""
    back = {actual: column for column, actual in spec.columns}
    known = {back.get(column, column) for column in columns}
    asking = {name: set(needed) for name, needed in COLUMNS.items() if name != "text"}
    for name, needed in asking.items():
        if needed <= known:
            return name
    for name, column in ANSWER_COLUMNS.items():
        if asking[name] - {column} <= known:
            return name
    return detect(sorted(known), where)
