"""Text to tokens with the model's own tokenizer and chat template; no torch, no transformers.

Importing transformers' tokenizer loads torch, which `lowregret plan` must not; the same files are read here with the
`tokenizers` library and a sandboxed Jinja. A test holds the token ids equal to transformers' `apply_chat_template`.

A base model without a chat template gets a plain one: the content of a system or user turn is followed by a blank line;
an assistant's content by the end-of-text token (and a blank line where another turn follows).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from lowregret.data.conversations import Conversation, Message
from lowregret.errors import DataError, ModelError

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}"
    "{% else %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Tokens of a conversation.

    >>> Encoded(tokens=np.array([1, 2]), completion=np.array([False, True]), turns_without_loss=0).tokens.size
    2
    """

    tokens: np.ndarray[Any, np.dtype[np.int32]]
    completion: np.ndarray[Any, np.dtype[np.bool_]]
    """True on the assistant's content and its end-of-turn token; False on headers and on what others say."""
    turns_without_loss: int
    """Earlier assistant turns that the template rewrites (it strips old reasoning, say), so that they carry none."""


class TextTokenizer:
    """A model's tokenizer and chat template."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: str | None,
        eos_token: str,
        bos_token: str | None,
        stop: Sequence[int],
        digest: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._source = template or PLAIN_TEMPLATE
        self._template = _environment().from_string(self._source)
        self._special = {"eos_token": eos_token, "bos_token": bos_token or ""}
        eos_token_id = tokenizer.token_to_id(eos_token)
        assert eos_token_id is not None
        self.eos_token_id = eos_token_id
        self.stop_token_ids = tuple(dict.fromkeys([self.eos_token_id, *stop]))
        self.vocab_size = tokenizer.get_vocab_size()
        self.content_hash = digest

    @classmethod
    def from_folder(cls, folder: Path) -> TextTokenizer:
        """Read tokenizer.json, tokenizer_config.json, chat_template.jinja and the generation config.

        Raises:
            ModelError: no tokenizer.json, or no end-of-text token.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelError(
                f"{folder} has no tokenizer.json; save the fast tokenizer there: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
            )
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        settings = _json(folder / "tokenizer_config.json")
        generation = _json(folder / "generation_config.json") or _json(folder / "config.json")
        ids = generation.get("eos_token_id")
        stop = [] if ids is None else [int(i) for i in (ids if isinstance(ids, list) else [ids])]
        eos = _token(settings.get("eos_token")) or (tokenizer.id_to_token(stop[0]) if stop else None)
        if eos is None or tokenizer.token_to_id(eos) is None:
            raise ModelError(f"the tokenizer in {folder} has no EOS token; set eos_token in tokenizer_config.json")
        template = _chat_template(folder, settings)
        digest = hashlib.sha256(file.read_bytes() + repr((template, eos)).encode()).hexdigest()
        bos = _token(settings.get("bos_token"))
        return cls(tokenizer, template=template, eos_token=eos, bos_token=bos, stop=stop, digest=digest)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it stands, no special tokens added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt, with the header that opens an answer."""
        return self.encode(self._render(messages, open_answer=True))

    def encode_conversation(self, conversation: Conversation, loss_on: Literal["all", "last"] = "all") -> Encoded:
        """Tokens and completion mask of one conversation; see `encode_batch`."""
        return self.encode_batch([conversation], loss_on)[0]

    def encode_batch(self, conversations: Sequence[Conversation], loss_on: Literal["all", "last"]) -> list[Encoded]:
        """Tokens and completion masks; the tokenizer works on all texts at once, on all cores.

        Raises:
            DataError: the template fails, or rewrites the last answer so that it can't be found again.
        """
        rendered = [self._rendered(conversation, loss_on) for conversation in conversations]
        encodings = self._tokenizer.encode_batch_fast([text for text, _, _ in rendered], add_special_tokens=False)
        # encode_batch_fast leaves offsets out; they are needed where the mask is cut.
        if any(spans for _, spans, _ in rendered):
            encodings = self._tokenizer.encode_batch([text for text, _, _ in rendered], add_special_tokens=False)
        made: list[Encoded] = []
        for (_, spans, skipped), encoding in zip(rendered, encodings, strict=True):
            starts = np.fromiter((start for start, _ in encoding.offsets), dtype=np.int64, count=len(encoding.ids))
            completion = np.zeros(len(encoding.ids), dtype=np.bool_)
            for begin, end in spans:
                completion |= (starts >= begin) & (starts < end)
            tokens = np.array(encoding.ids, dtype=np.int32)
            made.append(Encoded(tokens=tokens, completion=completion, turns_without_loss=skipped))
        return made

    def _rendered(self, conversation: Conversation, loss_on: str) -> tuple[str, list[tuple[int, int]], int]:
        """Text, character spans that carry loss, and how many earlier turns the template hides."""
        messages = conversation.messages
        if messages[0].role == "text":
            text = messages[0].content + self._special["eos_token"]
            return text, [(0, len(text))], 0
        full = self._render(messages)
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        spans: list[tuple[int, int]] = []
        skipped = 0
        for index in answers if loss_on == "all" else answers[-1:]:
            before = self._render(messages[:index], open_answer=True)
            upto = full if index == len(messages) - 1 else self._render(messages[: index + 1])
            if full.startswith(upto) and upto.startswith(before):
                # What follows the end-of-turn token (a line break) is never generated: no loss on it.
                spans.append((len(before), len(upto.rstrip())))
            elif index == answers[-1]:
                raise DataError(
                    "the chat template rewrites the last answer, so its tokens can't be found; use another template"
                )
            else:
                skipped += 1
        return full, spans, skipped

    def _render(self, messages: Sequence[Message], *, open_answer: bool = False) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=open_answer, **self._special)
        except TemplateError as error:
            raise DataError(f"the model's chat template refuses a conversation: {error}") from error


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

    def tojson(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def strftime_now(layout: str) -> str:
        return datetime.now().strftime(layout)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def _token(value: Any) -> str | None:
    return value["content"] if isinstance(value, dict) else value


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
