"""Text to tokens with the model's own tokenizer and chat template; no torch, no transformers.

Importing transformers' tokenizer loads torch, which `lowregret plan` must not; the same files are read here with the
`tokenizers` library and a sandboxed Jinja. A test holds the token ids equal to transformers' `apply_chat_template`.

A base model without a chat template gets `PLAIN_TEMPLATE`. Whole texts and plain conversations begin with the BOS token
where the tokenizer adds one by itself; a chat template writes its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from lowregret.data.conversations import Conversation, Message
from lowregret.data.templates import PLAIN_END, PLAIN_TEMPLATE, ChatTemplate, find_template
from lowregret.errors import DataError, ModelError

LossOn = Literal["all", "last"]
STAND_IN = "\ue000answer\ue000"
"""Put in an answer's place to see where a template writes it; private-use characters stand in no text."""
OPENING = "A"
"""Put behind a prompt to see how the prompt's last characters are tokenised once an answer follows: a text's end may
merge otherwise (`\\n\\n` is one token there, and two before a word). Any letter would do."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as text.

    >>> Rendered(text="2 + 2?\\n\\n4</s>", spans=((8, 13),), turns_without_loss=0).spans
    ((8, 13),)
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    """Characters that carry loss: each answer and its end-of-turn token."""
    turns_without_loss: int
    """Earlier answers that the template rewrites (it strips old reasoning, say), so that they carry none."""


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
    """See `Rendered`."""


class TextTokenizer:
    """A model's tokenizer and chat template."""

    def __init__(
        self, tokenizer: Tokenizer, *, template: str | None, special: Mapping[str, str], bos: str, stop: Sequence[int]
    ) -> None:
        """Args:
        special: the special tokens by name (`eos_token`), the end-of-text token among them.
        bos: what texts and plain conversations begin with; empty where the tokenizer adds nothing.
        stop: further token ids that end an answer.
        """
        self._tokenizer = tokenizer
        # The post-processor only adds special tokens, which we never ask for, and trims offsets, which would shift
        # the mask of a token that is all blanks.
        tokenizer.post_processor = None  # pyright: ignore[reportAttributeAccessIssue] - the stub forgets None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._template = ChatTemplate(template or PLAIN_TEMPLATE, special)
        self._eos, self._bos = special["eos_token"], bos
        self._plain = template is None
        eos_token_id = tokenizer.token_to_id(self._eos)
        assert eos_token_id is not None
        self.eos_token_id = eos_token_id
        self.stop_token_ids = tuple(dict.fromkeys([self.eos_token_id, *stop]))
        self.vocab_size = tokenizer.get_vocab_size()
        parts = (tokenizer.to_str(), template, sorted(special.items()), bos)
        self.content_hash = hashlib.sha256(repr(parts).encode()).hexdigest()

    @classmethod
    def from_folder(cls, folder: Path) -> TextTokenizer:
        """Read tokenizer.json, tokenizer_config.json, chat_template.jinja and the generation config.

        Raises:
            ModelError: no tokenizer.json, a file that can't be read, or no end-of-text token.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelError(
                f"{folder} has no tokenizer.json; save the fast tokenizer there: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
            )
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise ModelError(f"{file} can't be read ({error}); save the tokenizer again") from error
        settings = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
        special = {name: text for name in settings if name.endswith("_token") and (text := _token(settings[name]))}
        stop = _stop_token_ids(folder)
        eos = special.get("eos_token") or (tokenizer.id_to_token(stop[0]) if stop else None)
        if eos is None or tokenizer.token_to_id(eos) is None:
            raise ModelError(f"the tokenizer in {folder} has no EOS token; set eos_token in tokenizer_config.json")
        bos = _own_bos(tokenizer, settings, special.get("bos_token"))
        template = find_template(folder, settings)
        return cls(tokenizer, template=template, special={**special, "eos_token": eos}, bos=bos, stop=stop)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it stands, no special tokens added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt, with the header that opens an answer."""
        return self.encode(self._text_of(messages, open_answer=True))

    def encode_conversation(self, conversation: Conversation, loss_on: LossOn = "all") -> Encoded:
        """Tokens and completion mask of one conversation; see `encode_batch`."""
        return self.encode_batch([conversation], loss_on)[0]

    def encode_batch(self, conversations: Sequence[Conversation], loss_on: LossOn) -> list[Encoded]:
        """Tokens and completion masks; see `render` for what it refuses."""
        return self.encode_rendered([self.render(conversation, loss_on) for conversation in conversations])

    def encode_rendered(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """Tokens and completion masks; the tokenizer works on all texts at once, on all cores."""
        encodings = self._tokenizer.encode_batch([item.text for item in rendered], add_special_tokens=False)
        made: list[Encoded] = []
        for item, encoding in zip(rendered, encodings, strict=True):
            tokens, completion = np.array(encoding.ids, dtype=np.int32), _in_spans(encoding.offsets, item.spans)
            made.append(Encoded(tokens=tokens, completion=completion, turns_without_loss=item.turns_without_loss))
        return made

    def render_prompt(self, messages: Sequence[Message], *, as_it_stands: bool = False) -> Rendered:
        """A prompt with a stand-in behind it: its only span begins where the model takes over.

        That is after the header by which the chat template opens an answer, else where `render` finds the answer.

        Args:
            as_it_stands: without a chat template, nothing is put between the last turn and the answer.

        Raises:
            DataError: the template refuses the turns, or rewrites an answer beyond recognition.
        """
        if self._plain and as_it_stands:
            prompt = self._text_of(messages).removesuffix(PLAIN_END)
        else:
            prompt = self._text_of(messages, open_answer=True)
            if prompt == self._text_of(messages):
                answer = Message(role="assistant", content=OPENING)
                return self.render(Conversation(messages=(*messages, answer)), "last")
        span = (len(prompt), len(prompt) + len(OPENING))
        return Rendered(text=prompt + OPENING, spans=(span,), turns_without_loss=0)

    def encode_prompts(self, rendered: Sequence[Rendered]) -> list[tuple[int, ...]]:
        """Token ids of prompts from `render_prompt`: those that stand before the answer in a training example.

        A blank that shares a token with the answer's first word is left to the model, as it is in training. Anything
        else that would is the prompt's own: then the prompt is tokenised by itself.
        """
        encodings = self._tokenizer.encode_batch([item.text for item in rendered], add_special_tokens=False)
        made: list[tuple[int, ...]] = []
        for item, encoding in zip(rendered, encodings, strict=True):
            begin = item.spans[0][0]
            inside = _in_spans(encoding.offsets, item.spans)
            first = int(inside.argmax())
            shared = item.text[encoding.offsets[first][0] : begin]
            alone = not inside.any() or bool(shared.strip())
            made.append(tuple(self.encode(item.text[:begin]) if alone else encoding.ids[:first]))
        return made

    def render(self, conversation: Conversation, loss_on: LossOn) -> Rendered:
        """Text, and which characters of it carry loss.

        Raises:
            DataError: no turns, the template refuses them, or it rewrites the last answer beyond recognition.
        """
        messages = conversation.messages
        if len(messages) < 1:
            raise DataError("a conversation has no turns; drop it")
        if any(message.role == "text" for message in messages):
            if len(messages) > 1:
                raise DataError("a turn has the role 'text', which is a whole document; give it a row of its own")
            text = self._bos + messages[0].content + self._eos
            return Rendered(text=text, spans=((len(self._bos), len(text)),), turns_without_loss=0)
        full = self._text_of(messages)
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        spans: list[tuple[int, int]] = []
        skipped = 0
        for index in answers if loss_on == "all" else answers[-1:]:
            span = self._answer_span(messages, index, full)
            if span is not None:
                spans.append(span)
            elif index == len(messages) - 1:
                raise DataError(
                    "the chat template rewrites the last answer, so its tokens can't be found; use another template"
                )
            else:
                skipped += 1
        return Rendered(text=full, spans=tuple(spans), turns_without_loss=skipped)

    def _answer_span(self, messages: Sequence[Message], index: int, full: str) -> tuple[int, int] | None:
        """Where an answer and its end-of-turn token stand in `full`; None where it is not there as it was given."""
        upto = full if index == len(messages) - 1 else self._text_of(messages[: index + 1])
        # What follows the end-of-turn token (a line break) is never generated: no loss on it.
        end = len(upto.rstrip())
        begin = self._answer_start(messages, index, upto)
        if begin is None:
            return None
        if full.startswith(upto[:end]):
            return begin, end
        # The template adds something to the newest answer only (an empty reasoning block): take the rest.
        at = self._place_of_content(messages, index, upto)
        if at is None or not full.startswith(upto[:begin] + upto[at:end]):
            return None
        return begin, begin + end - at

    def _answer_start(self, messages: Sequence[Message], index: int, upto: str) -> int | None:
        """Where the model takes over: after the header that the template writes when asked to open an answer."""
        # Some templates look at the first turn; where the answer is the first, there is no prompt to show them.
        before = self._text_of(messages[:index], open_answer=True) if index else ""
        closed = self._text_of(messages[:index]) if index else ""
        if before != closed and upto.startswith(before):
            return len(before)
        # The template has no such header, or one that finished answers lack (it opens a reasoning block).
        at = self._place_of_content(messages, index, upto)
        if at is not None and upto.startswith(closed) and not upto[len(closed) : at].strip():
            # Nothing but a blank stands between prompt and answer: the model writes that too.
            return len(closed)
        return at

    def _place_of_content(self, messages: Sequence[Message], index: int, upto: str) -> int | None:
        """Where in `upto` the template wrote an answer, up to blanks at its ends; None where it changed the answer.

        The place is that of a stand-in: the answer's own words may stand in the prompt, the header or a tag too.
        """
        probe = self._text_of([*messages[:index], Message(role="assistant", content=STAND_IN)])
        header, found, footer = probe.rpartition(STAND_IN)
        if not found or not upto.startswith(header) or not upto.endswith(footer):
            return None
        written = upto[len(header) : len(upto) - len(footer)]
        return len(header) if written.strip() == messages[index].content.strip() else None

    def _text_of(self, messages: Sequence[Message], *, open_answer: bool = False) -> str:
        return (self._bos if self._plain else "") + self._template.render(messages, open_answer=open_answer)


def _in_spans(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which tokens, given by their first and last characters, belong to a span."""
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    inside = np.zeros(len(offsets), dtype=np.bool_)
    for begin, end in spans:
        # A token that begins with the blank before an answer holds its first word; one may hold nothing at all.
        inside |= ((ends > begin) | (starts >= begin)) & (starts < end)
    return inside


def _own_bos(tokenizer: Tokenizer, settings: Mapping[str, Any], bos: str | None) -> str:
    """The BOS token where the tokenizer puts it before every text, else nothing."""
    if bos is None:
        return ""
    adds = settings.get("add_bos_token")
    if adds is None:
        adds = tokenizer.encode("").ids[:1] == [tokenizer.token_to_id(bos)]
    return bos if adds else ""


def _stop_token_ids(folder: Path) -> list[int]:
    for name in ("generation_config.json", "config.json"):
        ids = _json(folder / name).get("eos_token_id")
        if ids is not None:
            return [int(i) for i in (ids if isinstance(ids, list) else [ids])]
    return []


def _token(value: Any) -> str | None:
    return value["content"] if isinstance(value, dict) else value


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON ({error}); save the tokenizer again") from error
