"""Rows that the tests of the data room write to files, and the texts that they become."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowregret.data.examples import ExampleStore
from lowregret.data.load import TokenizedData
from lowregret.data.tokenizer import TextTokenizer

SHORT: dict[str, Any] = {"validation_size": 1, "test_size": 1}
PAIR = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def jsonl(file: Path, rows: Sequence[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def questions(number: int) -> list[dict[str, Any]]:
    return [{"question": f"question {k}", "answer": f"answer {k}"} for k in range(number)]


def texts(tokenizer: TextTokenizer, store: ExampleStore) -> list[str]:
    return [tokenizer.decode(store[index][0].tolist()) for index in range(len(store))]


def all_texts(tokenizer: TextTokenizer, data: TokenizedData) -> list[str]:
    return [text for store in (data.train, data.validation, data.test) for text in texts(tokenizer, store)]
