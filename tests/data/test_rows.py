"""Rows that lack something: each is refused or dropped in words, and none is learned from by mistake."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data.rows_on_disk import PAIR, SHORT, all_texts, jsonl
from data.tokenizers_on_disk import text_tokenizer
from lowregret.data.load import load_data
from lowregret.data.tokenizer import TextTokenizer
from lowregret.errors import DataError
from lowregret.specs import DataSpec


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return text_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("name", ["instruction", "sharegpt"])
def test_a_renamed_column_that_is_not_there_is_refused(tmp_path: Path, tokenizer: TextTokenizer, name: str) -> None:
    optional = {"instruction": "input", "sharegpt": "system"}[name]
    row: dict[str, Any] = {
        "instruction": {"instruction": "q", "input": "i", "output": "a"},
        "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    }[name]
    source = jsonl(tmp_path / "d.jsonl", [row])
    words = rf"row 1: column 'context' is missing; it has {', '.join(row)}; add it, or rename"
    with pytest.raises(DataError, match=words):
        load_data(DataSpec(source=source, columns=((optional, "context"),)), tokenizer)


def test_an_optional_column_may_be_missing_unless_it_was_renamed(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [{"instruction": f"q{k}", "output": "a", **({"context": f"c{k}"} if k else {})} for k in range(4)]
    source = jsonl(tmp_path / "d.jsonl", rows)
    assert "user\nq1\nassistant\na\n" in all_texts(tokenizer, load_data(DataSpec(source=source, **SHORT), tokenizer))
    renamed = DataSpec(source=jsonl(tmp_path / "e.jsonl", rows[1:]), columns=(("input", "context"),), **SHORT)
    assert "user\nq1\n\nc1\nassistant\na\n" in all_texts(tokenizer, load_data(renamed, tokenizer))


def test_turns_that_call_tools_are_dropped_and_counted(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    result, answer = {"role": "tool", "content": "4"}, {"role": "assistant", "content": "four"}
    user = {"role": "user", "content": "2 + 2?"}
    rows: list[dict[str, Any]] = [
        {"messages": [user, call]},
        {"messages": [user, call, result, answer]},
        {"messages": [user, {**call, "content": "let me see"}, result, answer]},
        {"messages": [user, {"role": "assistant", "content": "", "function_call": {"name": "add"}}]},
        {"prompt": [user], "completion": [call]},
    ]
    for row in rows:
        prompts, end = [[{**user, "content": str(k)}] for k in range(4)], [{**answer, "tool_calls": []}]
        whole = [{"messages": [*prompt, *end]} for prompt in prompts]
        others = whole if "messages" in row else [{"prompt": prompt, "completion": end} for prompt in prompts]
        data = load_data(DataSpec(source=jsonl(tmp_path / "d.jsonl", [*others, row]), **SHORT), tokenizer)
        assert (data.report.tool_calls, data.report.empty, data.report.kept, data.report.read) == (1, 0, 4, 5)
    with pytest.raises(DataError, match=r"nothing is left of 2 rows \(2 that call tools\)"):
        load_data(DataSpec(source=jsonl(tmp_path / "d.jsonl", rows[:2])), tokenizer)


def test_an_empty_answer_anywhere_is_dropped_and_counted(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    first = {"role": "assistant", "content": None, "tool_calls": None}
    rows = [*({"messages": [{"role": "user", "content": str(k)}, PAIR[1]]} for k in range(4)), {"messages": [first]}]
    rows.append({"messages": [PAIR[0], first, *PAIR]})
    data = load_data(DataSpec(source=jsonl(tmp_path / "d.jsonl", rows), **SHORT), tokenizer)
    assert (data.report.empty, data.report.tool_calls, data.report.kept) == (2, 0, 4)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_missing_numbers_are_empty_not_words(tmp_path: Path, tokenizer: TextTokenizer, kind: str) -> None:
    answers = [1.5, 2.5, 3.5, math.nan]
    file = tmp_path / f"d.{kind}"
    rows = [{"question": f"q{k}", "answer": answer} for k, answer in enumerate(answers)]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif kind == "csv":
        file.write_text("question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in rows))
    else:
        jsonl(file, rows)
    data = load_data(DataSpec(source=str(file), **SHORT), tokenizer)
    assert (data.report.empty, data.report.kept) == (1, 3)
    assert sorted(all_texts(tokenizer, data))[0] == "user\nq0\nassistant\n1.5\n"
    assert not any("nan" in text for text in all_texts(tokenizer, data))


def test_turns_and_prompts_that_are_no_number(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    user = {"role": "user", "content": "q"}
    rows = [{"messages": math.nan}, {"messages": [user, {"role": "assistant", "content": math.nan}]}]
    with pytest.raises(DataError, match=r"nothing is left of 2 rows \(2 without an answer\)"):
        load_data(DataSpec(source=jsonl(tmp_path / "d.jsonl", rows)), tokenizer)
