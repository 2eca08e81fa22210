"""From files and generators to tokenised splits: formats, counts, errors, splits, the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data.rows_on_disk import PAIR, SHORT, all_texts, jsonl, questions, texts
from data.tokenizers_on_disk import text_tokenizer, with_loss
from lowregret.data import generated
from lowregret.data.examples import ExampleStore
from lowregret.data.load import TokenizedData, load_data, load_eval_data
from lowregret.data.sources import open_source, parse_source
from lowregret.data.tokenizer import TextTokenizer
from lowregret.errors import DataError
from lowregret.specs import DataSpec


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return text_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def prompts(tokenizer: TextTokenizer, store: ExampleStore) -> set[str]:
    """The prompt of every example, the template's words left out."""
    return {text.removeprefix("user\n").split("\nassistant\n")[0].strip() for text in texts(tokenizer, store)}


ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "messages": ({"messages": PAIR}, "user\nq\nassistant\na\n"),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        "system\ns\nuser\nq\nassistant\na\n",
    ),
    "prompt-completion": ({"prompt": "q", "completion": "a"}, "user\nq\nassistant\na\n"),
    "question-answer": ({"question": "q", "answer": "a", "id": 3}, "user\nq\nassistant\na\n"),
    "instruction": ({"instruction": "q", "input": "i", "output": "a"}, "user\nq\n\ni\nassistant\na\n"),
    "text": ({"text": "whole"}, "whole"),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", ROWS)
def test_formats_found_and_named(tmp_path: Path, tokenizer: TextTokenizer, name: Any, named: bool) -> None:
    row, text = ROWS[name]
    number = 3
    rows = [json.loads(json.dumps(row).replace('"q"', f'"{k}"').replace("whole", f"whole{k}")) for k in range(number)]
    source = jsonl(tmp_path / "d.jsonl", rows)
    data = load_data(DataSpec(source=source, format=name if named else "auto", **SHORT), tokenizer)
    expected = [text.replace("\nq\n", f"\n{k}\n").replace("whole", f"whole{k}") for k in range(number)]
    assert sorted(all_texts(tokenizer, data)) == expected
    tokens, completion = data.train[0]
    learned = with_loss(tokenizer, tokens, completion)
    assert learned == ("[a<|im_end|>]" if name != "text" else f"[{texts(tokenizer, data.train)[0]}<|end_of_text|>]")


def test_prompts_as_turns_parts_and_an_empty_system(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    parts = [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]
    rows: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": parts}], "completion": PAIR[1:]},
        {"prompt": "x", "completion": "y"},
        {"prompt": None, "completion": "z"},
    ]
    data = load_data(DataSpec(source=jsonl(tmp_path / "d.jsonl", rows), **SHORT), tokenizer)
    expected = {"user\nqr\nassistant\na\n", "user\nx\nassistant\ny\n", "user\n\nassistant\nz\n"}
    assert set(all_texts(tokenizer, data)) == expected


def test_renamed_columns(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    source = jsonl(tmp_path / "d.jsonl", [{"problem": f"p{k}", "solution": k} for k in range(3)])
    columns = (("question", "problem"), ("answer", "solution"))
    data = load_data(DataSpec(source=source, columns=columns, **SHORT), tokenizer)
    assert sorted(all_texts(tokenizer, data))[0] == "user\np0\nassistant\n0\n"
    with pytest.raises(DataError, match="format 'question-answer' has no column 'x'; it has question, answer"):
        load_data(DataSpec(source=source, format="question-answer", columns=(*columns, ("x", "y"))), tokenizer)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([{"a": 1}], {}, "no known format has the columns a"),
        ([*questions(1), {"question": "q"}], {}, "row 2: column 'answer' is missing; it has question"),
        ([{"text": ["x"]}], {}, "row 1: column 'text' holds list, text is needed"),
        ([{"messages": "hello"}], {}, "column 'messages' holds str, a list of turns"),
        ([{"messages": [{"role": "user"}]}], {}, "turn 0 of 'messages' needs the keys 'role' and 'content'"),
        ([{"messages": [{"role": "text", "content": "x"}]}], {}, "has the role 'text'; known: system"),
        ([{"messages": [{"role": "user", "content": [{"image": "x"}]}]}], {}, "turn 0 of 'messages' holds list"),
        ([{"text": "x"}], {"format": "messages"}, "column 'messages' is missing; it has text"),
        ([{"question": "q", "answer": None}] * 3, {}, r"nothing is left of 3 rows \(3 without an answer\)"),
        ([{"messages": None}, {"messages": []}], {}, r"nothing is left of 2 rows \(2 without an answer\)"),
        (questions(3), {"max_length": 4}, r"nothing is left of 3 rows \(3 too long\)"),
        (questions(3), {"max_length": 4, "overlong": "truncate"}, r"\(3 with no token to learn\)"),
        ([], {}, "it has no rows"),
        (questions(3), {"test_size": 3}, "3 test and 1 validation examples leave nothing of 3"),
        ([{"question": "q", "answer": str(k)} for k in range(9)], {}, "too few different prompts in 9 rows"),
        (questions(9), {"test_size": 0}, "test_size is 0, .*; give at least --test-size 1, or leave --test-size out"),
        (questions(9), {"validation_size": 0}, "validation_size is 0, and .*; give at least --validation-size 1"),
        (questions(9), {"test_size": -1}, "test_size is -1"),
    ],
)
def test_what_is_wrong_with_rows(
    tmp_path: Path, tokenizer: TextTokenizer, rows: list[Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load_data(DataSpec(source=jsonl(tmp_path / "d.jsonl", rows), **options), tokenizer)
    assert "\n" not in str(caught.value)
    assert "d.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.jsonl", b'{"text": "x"}\n\n{"text": \n', "line 3 is not JSON"),
        ("d.jsonl", b'[{"text": "x"}]\n', r"line 1 holds a list; .*name the file \.json"),
        ("d.json", b'[{"text": "x"},\n{]', "line 2 is not JSON"),
        ("d.json", b'{"text": "x"}', "must hold a list of objects"),
        ("d.csv", b"text\na,b\n", "line 2 has more cells than the header"),
        ("d.csv", b"text\n" + b"a" * 140_000, "field larger than field limit"),
        ("d.parquet", b"text", "no readable Parquet file"),
        ("d.jsonl", b'{"text": "\xff"}', "is not UTF-8 text"),
        ("d.txt", b"text", "of an unknown kind; use one of"),
    ],
)
def test_what_is_wrong_with_files(
    tmp_path: Path, tokenizer: TextTokenizer, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        load_data(DataSpec(source=str(tmp_path / name)), tokenizer)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("./nothing.jsonl", "does not exist; check the path"),
        ("./no/such/thing", "does not exist; check the path"),
        ("owner/name", "not in the local cache and the hub can't be reached; give a local file"),
        ("reasoning-gym:chain_sums", "no task 'chain_sums'; near ones: .*chain_sum"),
    ],
)
def test_sources_that_are_not_there(tokenizer: TextTokenizer, source: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_data(DataSpec(source=source), tokenizer)


def test_a_folder_is_no_data_file(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    with pytest.raises(DataError, match="is a folder; name one file in it"):
        load_data(DataSpec(source=str(tmp_path)), tokenizer)
    with pytest.raises(DataError, match="is no hub data set; give a file with test_source"):
        load_data(DataSpec(source=jsonl(tmp_path / "d.jsonl", []), test_split="test"), tokenizer)


def test_names_of_sources() -> None:
    assert parse_source("facts") == {"source": "facts"}
    assert parse_source("a/b") == {"source": "a/b"}
    assert parse_source("a/b::test") == {"source": "a/b", "split": "test"}
    assert parse_source("c:x.jsonl") == {"source": "c:x.jsonl"}
    with pytest.raises(DataError, match="has 4 parts"):
        parse_source("a/b:c:d:e")


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = questions(20)
    jsonl(tmp_path / "d.jsonl", rows)
    (tmp_path / "d.JSON").write_text(json.dumps(rows), encoding="utf-8-sig")
    (tmp_path / "e.json").write_text(json.dumps({"data": rows}))
    cells = "".join(f'"{row["question"]}",{row["answer"]}\n' for row in rows)
    (tmp_path / "d.csv").write_text("question,answer\n" + cells, encoding="utf-8-sig")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    names = ["d.jsonl", "d.JSON", "e.json", "d.csv", "d.parquet"]
    loaded = [load_data(DataSpec(source=str(tmp_path / name)), tokenizer) for name in names]
    assert len({(d.train.content_hash, d.validation.content_hash, d.test.content_hash) for d in loaded}) == 1
    assert len({d.content_hash for d in loaded}) == len(names)


def test_rows_are_counted(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [*questions(10), {"question": "q", "answer": " "}, {"question": "long" * 50, "answer": "a"}]
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", rows), max_length=60)
    data = load_data(spec, tokenizer)
    report = data.report
    assert (report.read, report.kept, report.empty, report.overlong) == (12, 10, 1, 1)
    assert report.train + report.validation + report.test == 10
    assert (data.facts.num_examples, data.facts.num_tokens) == (report.train, int(data.train.lengths.sum()))
    assert data.facts.num_completion_tokens == sum(data.train[i][1][1:].sum() for i in range(report.train))
    assert data.facts.longest == max(len(data.train[i][0]) for i in range(report.train))
    cut = load_data(DataSpec(source=spec.source, max_length=30, overlong="truncate"), tokenizer)
    assert cut.report.truncated > 0
    assert cut.train.lengths.max() == 30
    assert load_data(DataSpec(source=spec.source, limit=5), tokenizer).report.read == 5


def test_splits_hold_whatever_the_length_limit_and_the_order(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [{"question": f"question {k} " + "x" * (k % 40), "answer": f"{k}"} for k in range(120)]
    spec = DataSpec(source=jsonl(tmp_path / "a.jsonl", rows))
    whole = load_data(spec, tokenizer)
    turned = load_data(DataSpec(source=jsonl(tmp_path / "b.jsonl", rows[::-1])), tokenizer)
    short = load_data(DataSpec(source=spec.source, max_length=50), tokenizer)
    assert 0 < short.report.overlong < 120
    for name in ("train", "validation", "test"):
        before = prompts(tokenizer, getattr(whole, name))
        assert prompts(tokenizer, getattr(turned, name)) == before
        assert prompts(tokenizer, getattr(short, name)) < before
    other = load_data(DataSpec(source=spec.source, seed=1), tokenizer)
    assert prompts(tokenizer, other.test) != prompts(tokenizer, whole.test)


def test_a_test_file_of_its_own(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    source = jsonl(tmp_path / "a.jsonl", questions(40))
    own = jsonl(tmp_path / "b.jsonl", [*questions(3), *({"question": f"new {k}", "answer": "a"} for k in range(5))])
    data = load_data(DataSpec(source=source, test_source=own), tokenizer)
    assert (data.report.test, data.report.test_overlaps, data.report.validation) == (5, 3, 2)
    assert prompts(tokenizer, data.test) == {f"new {k}" for k in range(5)}
    fewer = load_data(DataSpec(source=source, test_source=own, test_size=2), tokenizer)
    assert prompts(tokenizer, fewer.test) < prompts(tokenizer, data.test)
    with pytest.raises(DataError, match="test_size 6 is larger than the test split's 5 usable rows"):
        load_data(DataSpec(source=source, test_source=own, test_size=6), tokenizer)
    with pytest.raises(DataError, match="every prompt of the test split is in the training data too"):
        load_data(DataSpec(source=source, test_source=source), tokenizer)


def test_a_held_out_split_that_is_all_too_long_is_refused(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    source = jsonl(tmp_path / "a.jsonl", questions(40))
    own = jsonl(tmp_path / "b.jsonl", [{"question": "x" * 200, "answer": "a"}])
    with pytest.raises(DataError, match="no test example is left of 1"):
        load_data(DataSpec(source=source, test_source=own, max_length=60), tokenizer)


def test_the_cache_is_used_until_the_data_changes(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    calls: list[int] = []
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", questions(20)))

    def load(spec: DataSpec) -> tuple[TokenizedData, bool]:
        calls.clear()
        return load_data(spec, tokenizer, progress=lambda done, total: calls.append(done)), bool(calls)

    first, made = load(spec)
    again, made_again = load(spec)
    assert (made, made_again, first.content_hash == again.content_hash) == (True, False, True)
    assert first.train.content_hash == again.train.content_hash
    larger, made_for_split = load(DataSpec(source=spec.source, test_size=4))
    assert (made_for_split, len(larger.test), larger.content_hash != first.content_hash) == (False, 4, True)
    jsonl(tmp_path / "d.jsonl", questions(21))
    changed, made = load(spec)
    assert made
    assert (changed.report.read, changed.content_hash != first.content_hash) == (21, True)
    assert load(DataSpec(source=spec.source, loss_on="last"))[1]


def test_nothing_is_left_behind_by_a_failed_tokenising(
    tmp_path: Path, tokenizer: TextTokenizer, own_cache: Path
) -> None:
    source = jsonl(tmp_path / "d.jsonl", [*questions(600), {"question": "q"}])
    with pytest.raises(DataError, match="row 601"):
        load_data(DataSpec(source=source), tokenizer)
    assert list((own_cache / "data").iterdir()) == []


def test_a_cache_that_cant_be_written(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOWREGRET_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"can't write the tokenised data .* set LOWREGRET_CACHE"):
        load_data(DataSpec(source="facts", limit=40), tokenizer)


def test_data_to_evaluate_on(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    like = DataSpec(source="facts", test_size=4, columns=(("question", "problem"),), format="messages")
    many = load_eval_data(jsonl(tmp_path / "many.jsonl", questions(30)), like, tokenizer)
    turned = load_eval_data(jsonl(tmp_path / "turned.jsonl", questions(30)[::-1]), like, tokenizer)
    assert len(many) == 4
    assert prompts(tokenizer, many) == prompts(tokenizer, turned) != {f"question {k}" for k in range(4)}
    assert len(load_eval_data(jsonl(tmp_path / "one.jsonl", questions(1)), like, tokenizer)) == 1
    with pytest.raises(DataError, match="it has no rows"):
        load_eval_data(jsonl(tmp_path / "none.jsonl", []), like, tokenizer)


def test_facts_carry_the_bits_that_they_say(tokenizer: TextTokenizer) -> None:
    rows = list(generated.rows("facts", size=5000, seed=0))
    assert generated.fact_bits(5000) == 35.0 * 1000
    assert rows == list(generated.rows("facts", size=5000, seed=0)) != list(generated.rows("facts", size=5000, seed=1))
    assert len({row["question"] for row in rows}) == 5000
    for attribute, size in generated.FACT_ATTRIBUTES.items():
        answers = [row["answer"] for row in rows if row["question"].endswith(f", {attribute}:")]
        # 1000 uniform draws of at most 256 values miss each with probability at most 0.02.
        assert 0.9 * size < len(set(answers)) <= size
    with pytest.raises(DataError, match="at least 1 row"):
        load_data(DataSpec(source="facts", limit=0), tokenizer)


def test_reasoning_tasks_by_name(tokenizer: TextTokenizer) -> None:
    spec = DataSpec(source="reasoning-gym:chain_sum", limit=12, **SHORT)
    data = load_data(spec, tokenizer)
    assert data.report.read == data.report.kept == 12
    assert open_source(spec).content_hash != open_source(DataSpec(source=spec.source, limit=12, seed=1)).content_hash
