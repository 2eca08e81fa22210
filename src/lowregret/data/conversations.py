"""A conversation: what every data format becomes before it is tokenised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool", "text"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool", "text")


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn.

    >>> Message(role="user", content="2 + 2?").role
    'user'
    """

    role: Role
    """`text` is a whole document without turns: every token of it carries loss."""
    content: str
    calls_tools: bool = False
    """The turn asks for tools by something other than its text, which no rendering here shows."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns in order; those of the assistant carry loss.

    >>> Conversation(messages=(Message(role="user", content="2 + 2?"), Message(role="assistant", content="4"))).prompt
    'user: 2 + 2?'
    """

    messages: tuple[Message, ...]

    @property
    def prompt(self) -> str:
        """Everything before the first answer: what decides the split, so that repeated prompts never leak."""
        before: list[str] = []
        for message in self.messages:
            if message.role == "assistant":
                break
            before.append(f"{message.role}: {message.content}")
        return "\n".join(before)

    @property
    def is_empty(self) -> bool:
        """No answer to learn from, or one that is empty: it would teach to say nothing."""
        answers = [m.content for m in self.messages if m.role in ("assistant", "text")]
        return not answers or not all(answer.strip() for answer in answers)

    @property
    def calls_tools(self) -> bool:
        """A turn of the assistant asks for tools."""
        return any(message.calls_tools for message in self.messages)
