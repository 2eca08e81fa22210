"""Token ids are transformers' own; loss lies on answers and their end, token by token."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from data.tokenizers_on_disk import (
    BOS,
    CHATML,
    EMPTY_REASONING,
    EOS,
    LLAMA_3,
    NO_HEADER,
    OPENS_REASONING,
    STRIPS_REASONING,
    text_tokenizer,
    tokenizer_folder,
    with_loss,
)
from lowregret.data.conversations import Conversation, Message, Role
from lowregret.data.templates import PLAIN_TEMPLATE
from lowregret.data.tokenizer import TextTokenizer
from lowregret.errors import DataError, ModelError


def chat(*turns: tuple[Role, str]) -> Conversation:
    return Conversation(messages=tuple(Message(role=role, content=content) for role, content in turns))


SINGLE = chat(("user", "2 + 2?"), ("assistant", "4"))
MULTI = chat(
    ("system", "Be  brief.\n"),
    ("user", "héllo 👋 <tag> b"),
    ("assistant", " ok\n\nuser b "),
    ("user", "日本?"),
    ("assistant", "はい b\nyes"),
)


def plain_turns(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in conversation.messages]


@pytest.mark.parametrize("template", [CHATML, LLAMA_3, STRIPS_REASONING, EMPTY_REASONING, NO_HEADER, None])
@pytest.mark.parametrize("conversation", [SINGLE, MULTI])
def test_ids_equal_apply_chat_template(tmp_path: Path, template: str | None, conversation: Conversation) -> None:
    ours = text_tokenizer(tmp_path, template, adds_bos=template == LLAMA_3)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    theirs.chat_template = template or PLAIN_TEMPLATE
    expected = theirs.apply_chat_template(plain_turns(conversation), return_dict=False)
    assert ours.encode_conversation(conversation).tokens.tolist() == expected
    prompt = conversation.messages[:-1]
    expected = theirs.apply_chat_template(plain_turns(conversation)[:-1], add_generation_prompt=True, return_dict=False)
    assert ours.encode_prompt(prompt) == expected
    assert ours.stop_token_ids == (theirs.eos_token_id,)


@pytest.mark.parametrize(
    ("template", "end"), [(CHATML, "<|im_end|>"), (LLAMA_3, "<|eot_id|>"), (NO_HEADER, "<|im_end|>"), (None, EOS)]
)
def test_loss_lies_on_answers_and_their_end(tmp_path: Path, template: str | None, end: str) -> None:
    tokenizer = text_tokenizer(tmp_path, template)
    answers = [" ok\n\nuser b ", "はい b\nyes"]
    if template == LLAMA_3:
        answers = [answer.strip() for answer in answers]
    every = tokenizer.encode_conversation(MULTI, "all")
    assert with_loss(tokenizer, every.tokens, every.completion) == f"[{answers[0]}{end}][{answers[1]}{end}]"
    last = tokenizer.encode_conversation(MULTI, "last")
    assert with_loss(tokenizer, last.tokens, last.completion) == f"[{answers[1]}{end}]"
    assert last.tokens.tolist() == every.tokens.tolist()
    assert every.turns_without_loss == last.turns_without_loss == 0


def test_every_token_of_a_small_chat(tmp_path: Path) -> None:
    tokenizer = text_tokenizer(tmp_path, CHATML)
    made = tokenizer.encode_conversation(chat(("user", "b"), ("assistant", "ok b")))
    tokens = [tokenizer._tokenizer.id_to_token(int(token)) for token in made.tokens]
    header = ["<|im_start|>", *"assistant", "Ċ"]
    assert tokens == ["<|im_start|>", "user", "Ċ", "b", "<|im_end|>", "Ċ", *header, "ok", "Ġb", "<|im_end|>", "Ċ"]
    assert made.completion.tolist() == [False] * (6 + len(header)) + [True, True, True, False]


def test_a_blank_token_before_an_answer_carries_no_loss(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = text_tokenizer(tmp_path, template)
    made = tokenizer.encode_conversation(chat(("user", "b"), ("assistant", "<|user|>4")))
    assert with_loss(tokenizer, made.tokens, made.completion) == "[<|user|>4<|im_end|>]"


def test_stripped_reasoning_carries_no_loss_and_is_counted(tmp_path: Path) -> None:
    tokenizer = text_tokenizer(tmp_path, STRIPS_REASONING)
    turns: list[tuple[Role, str]] = [
        ("user", "a"),
        ("assistant", "why</think>one"),
        ("user", "b"),
        ("assistant", "how</think>two"),
    ]
    made = tokenizer.encode_conversation(chat(*turns))
    assert with_loss(tokenizer, made.tokens, made.completion) == "[how</think>two<|im_end|>]"
    assert made.turns_without_loss == 1
    assert tokenizer.encode_conversation(chat(*turns), "last").turns_without_loss == 0


def test_an_empty_reasoning_block_of_the_last_turn_keeps_earlier_answers(tmp_path: Path) -> None:
    tokenizer = text_tokenizer(tmp_path, EMPTY_REASONING)
    made = tokenizer.encode_conversation(chat(("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")))
    expected = "[one<|im_end|>][<think>\n\n</think>\n\ntwo<|im_end|>]"
    assert with_loss(tokenizer, made.tokens, made.completion) == expected


def test_a_header_that_opens_reasoning_is_no_part_of_a_finished_answer(tmp_path: Path) -> None:
    tokenizer = text_tokenizer(tmp_path, OPENS_REASONING)
    made = tokenizer.encode_conversation(SINGLE)
    assert with_loss(tokenizer, made.tokens, made.completion) == "[4<|im_end|>]"
    with pytest.raises(DataError, match="rewrites the last answer"):
        tokenizer.encode_conversation(chat(("user", "a"), ("assistant", "why</think>one")))


def test_an_answer_without_a_prompt(tmp_path: Path) -> None:
    tokenizer = text_tokenizer(tmp_path, CHATML)
    made = tokenizer.encode_conversation(chat(("assistant", "4")))
    assert with_loss(tokenizer, made.tokens, made.completion) == "[4<|im_end|>]"


@pytest.mark.parametrize("adds_bos", [True, False])
def test_texts_begin_with_bos_where_the_tokenizer_adds_it(tmp_path: Path, adds_bos: bool) -> None:
    tokenizer = text_tokenizer(tmp_path, None, adds_bos=adds_bos)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    made = tokenizer.encode_conversation(chat(("text", "ok b")))
    assert made.tokens.tolist() == [*theirs("ok b").input_ids, theirs.eos_token_id]
    assert made.completion.tolist() == [False] * adds_bos + [True, True, True]
    assert (tokenizer.encode_conversation(SINGLE).tokens[0] == theirs.bos_token_id) == adds_bos


def test_bos_of_a_template_is_not_doubled(tmp_path: Path) -> None:
    tokenizer = text_tokenizer(tmp_path, LLAMA_3, adds_bos=True)
    ids = tokenizer.encode_conversation(SINGLE).tokens.tolist()
    assert ids.count(tokenizer.encode(BOS)[0]) == 1


def test_a_batch_gives_what_single_conversations_give(tmp_path: Path) -> None:
    tokenizer = text_tokenizer(tmp_path, LLAMA_3)
    both = tokenizer.encode_batch([SINGLE, MULTI], "all")
    for made, conversation in zip(both, (SINGLE, MULTI), strict=True):
        alone = tokenizer.encode_conversation(conversation)
        assert made.tokens.tolist() == alone.tokens.tolist()
        assert made.completion.tolist() == alone.completion.tolist()


def test_a_dated_template_gives_the_same_tokens_on_every_day(tmp_path: Path) -> None:
    tokenizer = text_tokenizer(tmp_path, "{{ strftime_now('%d %b %Y') }}" + CHATML)
    assert tokenizer.decode(tokenizer.encode_prompt(SINGLE.messages[:1])).startswith("26 Jul 2024")


@pytest.mark.parametrize(
    ("conversation", "words"),
    [
        (chat(), "no turns"),
        (chat(("user", "a"), ("text", "b")), "role 'text'"),
        (chat(("text", "a"), ("assistant", "b")), "role 'text'"),
    ],
)
def test_conversations_that_are_none(tmp_path: Path, conversation: Conversation, words: str) -> None:
    with pytest.raises(DataError, match=words):
        text_tokenizer(tmp_path).encode_conversation(conversation)


def test_a_template_that_refuses_says_why(tmp_path: Path) -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + CHATML
    with pytest.raises(DataError, match=r"refuses a conversation \(no system turns\)"):
        text_tokenizer(tmp_path, template).encode_conversation(MULTI)


def test_a_template_cant_reach_the_machine(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="refuses"):
        text_tokenizer(tmp_path, "{{ messages.__class__.__mro__ }}").encode_conversation(SINGLE)


def test_templates_stand_in_a_file_or_a_list(tmp_path: Path) -> None:
    expected = text_tokenizer(tmp_path / "text", CHATML).encode_prompt(SINGLE.messages[:1])
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": CHATML}]
    listed = text_tokenizer(tmp_path / "list", None, chat_template=named)
    assert listed.encode_prompt(SINGLE.messages[:1]) == expected
    folder = tokenizer_folder(tmp_path / "file", "overruled")
    (folder / "chat_template.jinja").write_text(CHATML)
    assert TextTokenizer.from_folder(folder).encode_prompt(SINGLE.messages[:1]) == expected


def test_stop_tokens_and_eos_come_from_the_model_too(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path, CHATML, eos=None)
    with pytest.raises(ModelError, match="no EOS token"):
        TextTokenizer.from_folder(folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 1.0}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [3, 6]}))
    tokenizer = TextTokenizer.from_folder(folder)
    assert (tokenizer.eos_token_id, tokenizer.stop_token_ids) == (3, (3, 6))


def test_folders_that_hold_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        TextTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json can't be read"):
        TextTokenizer.from_folder(tmp_path)
    tokenizer_folder(tmp_path, "{% if %}")
    with pytest.raises(ModelError, match="no valid Jinja"):
        TextTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json is not JSON"):
        TextTokenizer.from_folder(tmp_path)


def test_the_hash_follows_what_decides_tokens(tmp_path: Path) -> None:
    first = text_tokenizer(tmp_path / "a", CHATML).content_hash
    assert first == text_tokenizer(tmp_path / "b", CHATML).content_hash
    assert first != text_tokenizer(tmp_path / "c", LLAMA_3).content_hash
    assert first != text_tokenizer(tmp_path / "d", CHATML, adds_bos=True).content_hash


def test_data_is_tokenised_without_torch(tmp_path: Path) -> None:
    tokenizer_folder(tmp_path / "tokenizer", CHATML)
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from lowregret.data.load import load_data\nfrom lowregret.data.tokenizer import TextTokenizer\n"
        "from lowregret.specs import DataSpec\n"
        f"tokenizer = TextTokenizer.from_folder(Path({str(tmp_path / 'tokenizer')!r}))\n"
        "data = load_data(DataSpec(source='facts', limit=60), tokenizer)\n"
        "assert len(data.train) == 54, len(data.train)\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
