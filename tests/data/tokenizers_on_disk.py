"""Tokenizer folders that the tests of the data room build for themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lowregret.data.tokenizer import TextTokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% if tools is not none %}TOOLS{% endif %}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
STRIPS_REASONING = (
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' and not loop.last %}{% set content = content.split('</think>')[-1] %}"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{{ content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EMPTY_REASONING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS_REASONING = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'].split('</think>')[-1] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
NO_HEADER = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]{% else %}ANSWER{{ eos_token }}{% endif %}{% endfor %}"
)
"""As of Llama 2 and Mistral: no header opens an answer; `ANSWER` stands for how each of them spaces it."""
INST_SPACED = INST.replace("ANSWER", " {{ message['content'] | trim }} ")
INST_LED = INST.replace("ANSWER", " {{ message['content'] }}")
INST_TIGHT = INST.replace("ANSWER", "{{ message['content'] }}")
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|user|>",
    "<|assistant|>",
)
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"


def tokenizer_folder(
    folder: Path, template: str | None = None, *, adds_bos: bool = False, eos: str | None = EOS, **settings: Any
) -> Path:
    """A byte-level BPE with a few merges: no two characters of different kinds share a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("u", "s"), ("us", "e"), ("use", "r"), ("Ġ", "b"), ("Ċ", "Ċ"), ("o", "k")]
    merged = [a + b for a, b in merges]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet, *merged])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    # As in the wild: offsets are trimmed of blanks unless told otherwise, and base models put BOS first.
    steps: list[Any] = [processors.ByteLevel(trim_offsets=True)]
    if adds_bos:
        steps.append(processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]))
    tokenizer.post_processor = processors.Sequence(steps)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": eos, **settings}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def metaspace_tokenizer(folder: Path, template: str, kind: Literal["always", "first", "legacy"]) -> Path:
    """A BPE as of SentencePiece: a blank is `▁` and begins the word's token. `legacy` spells it by a normalizer."""
    letters = [chr(code) for code in range(33, 127)]
    merges = [("▁", "w"), ("o", "r"), ("▁w", "or"), ("▁wor", "d"), ("▁", "[")]
    pieces = [BOS, EOS, "▁", "\n", *letters, *(a + b for a, b in merges)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    if kind == "legacy":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens([BOS, EOS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return folder


def text_tokenizer(folder: Path, template: str | None = CHATML, **options: Any) -> TextTokenizer:
    """The tokenizer of such a folder."""
    return TextTokenizer.from_folder(tokenizer_folder(folder, template, **options))


def with_loss(tokenizer: TextTokenizer, tokens: Any, completion: Any) -> str:
    """Text of the tokens that carry loss, each run of them in brackets; special tokens spelt out."""
    raw = tokenizer._tokenizer
    pieces: list[str] = []
    run: list[int] = []
    for token, counts in [*zip(tokens, completion, strict=True), (0, False)]:
        if counts:
            run.append(int(token))
        elif run:
            pieces.append("[" + raw.decode(run, skip_special_tokens=False) + "]")
            run = []
    return "".join(pieces)
