"""Chat templates: where a model's stands, and the sandboxed Jinja that renders it as transformers would, without it.

One thing differs: a template that asks for today's date always gets `TEMPLATE_DATE`, so that the same data gives the
same tokens tomorrow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lowregret.data.conversations import Message
from lowregret.errors import DataError, ModelError

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}"
    "{% else %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)
"""For base models: a system or user turn is followed by a blank line, an answer by the end-of-text token."""
PLAIN_END = "\n\n"
"""What that template puts behind a system or user turn."""

TEMPLATE_DATE = datetime(2024, 7, 26)
"""The date that Llama 3's templates fall back to where the renderer knows no date."""


def find_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The folder's chat template: `chat_template.jinja`, else the (default) one of the tokenizer's settings."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


class ChatTemplate:
    """A compiled template with the special tokens that it may name.

    >>> template = ChatTemplate(PLAIN_TEMPLATE, {"eos_token": "</s>"})
    >>> template.render([Message(role="user", content="2 + 2?"), Message(role="assistant", content="4")])
    '2 + 2?\\n\\n4</s>'
    """

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        try:
            self._template: Template = _environment().from_string(source)
        except TemplateError as error:
            raise ModelError(f"the model's chat template is no valid Jinja ({error}); mend chat_template") from error
        self._special = dict(special)

    def render(self, messages: Sequence[Message], *, open_answer: bool = False) -> str:
        """The turns as text; `open_answer` adds the header after which the model would answer.

        Raises:
            DataError: the template refuses these turns.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(
                messages=turns, tools=None, documents=None, add_generation_prompt=open_answer, **self._special
            )
        except (TemplateError, TypeError) as error:
            raise DataError(
                f"the model's chat template refuses a conversation ({error}); change its turns or drop it"
            ) from error


class _GenerationTag(Extension):
    """`{% generation %}` marks answers in some templates; here it renders its body, the spans are found by prefixes."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **layout)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = TEMPLATE_DATE.strftime
    return environment
