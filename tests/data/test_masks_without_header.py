"""Loss token by token where no header opens an answer: [INST] templates, words that carry their blank, answers whose
words stand elsewhere too."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import transformers

from data.tokenizers_on_disk import (
    BOS,
    EMPTY_REASONING,
    EOS,
    INST_LED,
    INST_SPACED,
    INST_TIGHT,
    NO_HEADER,
    metaspace_tokenizer,
    text_tokenizer,
    with_loss,
)
from lowregret.data.conversations import Conversation, Message
from lowregret.data.tokenizer import TextTokenizer

Kind = Literal["always", "first", "legacy"]
OPEN, CLOSE = ["▁[", *"INST]"], ["▁[", *"/INST]"]


def chat(*contents: str) -> Conversation:
    """Turns of user and assistant by turns."""
    turns = [Message(role="assistant" if k % 2 else "user", content=text) for k, text in enumerate(contents)]
    return Conversation(messages=tuple(turns))


def marked(tokenizer: TextTokenizer, conversation: Conversation) -> list[tuple[str, bool]]:
    """Every token, and whether it carries loss."""
    made = tokenizer.encode_conversation(conversation)
    names = [tokenizer._tokenizer.id_to_token(int(token)) or "" for token in made.tokens]
    return list(zip(names, made.completion.tolist(), strict=True))


def expected(*runs: tuple[list[str], bool]) -> list[tuple[str, bool]]:
    return [(token, learned) for tokens, learned in runs for token in tokens]


@pytest.mark.parametrize("kind", ["always", "first", "legacy"])
@pytest.mark.parametrize(
    ("template", "answer"),
    [(INST_SPACED, ["▁word", "▁"]), (INST_LED, ["▁word"]), (INST_TIGHT, [*"w", "or", "d"])],
)
def test_every_token_of_an_inst_template(tmp_path: Path, template: str, answer: list[str], kind: Kind) -> None:
    tokenizer = TextTokenizer.from_folder(metaspace_tokenizer(tmp_path, template, kind))
    # Only the first text of all gets a blank of its own where the scheme is `first`.
    first = ["[", *OPEN[1:]] if kind == "first" else OPEN
    question = ([BOS, *first, "▁word", *CLOSE], False)
    again = ([*first, "▁word", *CLOSE], False)
    two = marked(tokenizer, chat("word", "word", "word", "word"))
    assert two == expected(question, ([*answer, EOS], True), again, ([*answer, EOS], True))
    one = tokenizer.encode_conversation(chat("word", "word"))
    prompt = tokenizer.encode_prompt(chat("word").messages)
    assert one.tokens[: len(prompt)].tolist() == prompt
    assert one.completion.tolist() == [False] * len(prompt) + [True] * (len(answer) + 1)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": "word"}, {"role": "assistant", "content": "word"}]
    assert one.tokens.tolist() == theirs.apply_chat_template(turns, return_dict=False)


@pytest.mark.parametrize("kind", ["always", "first", "legacy"])
def test_a_word_that_carries_its_blank_is_learned_after_a_header_too(tmp_path: Path, kind: Kind) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = TextTokenizer.from_folder(metaspace_tokenizer(tmp_path, template, kind))
    made = marked(tokenizer, chat("word", "word word"))
    learned = [token for token, counts in made if counts]
    assert learned == ["▁word", "▁word", EOS]
    assert made[-4:] == [(":", False), ("▁word", True), ("▁word", True), (EOS, True)]


@pytest.mark.parametrize("answer", ["assistant", "s", "start", "user", "|", "im_end", "\ue000"])
def test_an_answer_is_not_taken_for_the_same_word_in_a_header(tmp_path: Path, answer: str) -> None:
    tokenizer = text_tokenizer(tmp_path, NO_HEADER)
    made = tokenizer.encode_conversation(chat(answer, answer, "user", answer))
    assert with_loss(tokenizer, made.tokens, made.completion) == f"[{answer}<|im_end|>]" * 2
    begin = [k for k, learned in enumerate(made.completion) if learned and not made.completion[k - 1]]
    for at in begin:
        assert tokenizer._tokenizer.decode(made.tokens[:at].tolist(), skip_special_tokens=False).endswith("assistant\n")


@pytest.mark.parametrize("answer", ["think", "</think>", "im_end"])
def test_an_answer_is_not_taken_for_the_same_word_in_a_tag(tmp_path: Path, answer: str) -> None:
    tokenizer = text_tokenizer(tmp_path, EMPTY_REASONING)
    made = tokenizer.encode_conversation(chat("a", answer, "b", "c"))
    assert with_loss(tokenizer, made.tokens, made.completion).startswith(f"[{answer}<|im_end|>][<think>")
    assert made.turns_without_loss == 0
