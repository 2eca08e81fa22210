"""Prompts with their answers: the same tokens and splits as in supervised training, what is dropped and why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from data.rows_on_disk import PAIR, SHORT, jsonl, questions
from data.tokenizers_on_disk import (
    CHATML,
    EMPTY_REASONING,
    INST_LED,
    INST_SPACED,
    INST_TIGHT,
    LLAMA_3,
    NO_HEADER,
    OPENS_REASONING,
    STRIPS_REASONING,
    metaspace_tokenizer,
    text_tokenizer,
)
from lowregret.data import generated
from lowregret.data.conversations import Message
from lowregret.data.examples import ExampleStore
from lowregret.data.load import load_data
from lowregret.data.problems import ProblemData, PromptProblem, load_problems
from lowregret.data.sources import open_source
from lowregret.data.tokenizer import TextTokenizer
from lowregret.errors import DataError, SpecError
from lowregret.specs import DataSpec, Problem, RewardSpec, RLSpec, SamplingSpec
from lowregret.training.pretrain import write_tokenizer

MATH = RLSpec(rewards=(RewardSpec(source="math"),), sampling=SamplingSpec(max_new_tokens=8))
OWN = replace(MATH, rewards=(RewardSpec(source="mine.py:score"),))
GYM = replace(MATH, rewards=(RewardSpec(source="reasoning-gym"),))
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return text_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def word_tokenizer(folder: Path) -> TextTokenizer:
    folder.mkdir()
    write_tokenizer(folder)
    return TextTokenizer.from_folder(folder)


def every(data: ProblemData) -> list[PromptProblem]:
    return [*data.train, *data.validation, *data.test]


def asked(problems: tuple[PromptProblem, ...] | list[PromptProblem]) -> set[str]:
    return {p.problem.question for p in problems}


def before_the_answer(store: ExampleStore) -> list[tuple[int, ...]]:
    """Of each example, the tokens before the first that carries loss."""
    pairs = [store[index] for index in range(len(store))]
    return [tuple(int(t) for t in tokens[: int(completion.argmax())]) for tokens, completion in pairs]


TOKENIZERS: dict[str, Callable[[Path], TextTokenizer]] = {
    "chatml": lambda folder: text_tokenizer(folder, CHATML),
    "llama 3": lambda folder: text_tokenizer(folder, LLAMA_3),
    "strips reasoning": lambda folder: text_tokenizer(folder, STRIPS_REASONING),
    "empty reasoning": lambda folder: text_tokenizer(folder, EMPTY_REASONING),
    "no header": lambda folder: text_tokenizer(folder, NO_HEADER),
    "blanks around": lambda folder: text_tokenizer(folder, INST_SPACED),
    "blank before": lambda folder: text_tokenizer(folder, INST_LED),
    "no blank": lambda folder: text_tokenizer(folder, INST_TIGHT),
    "pieces": lambda folder: TextTokenizer.from_folder(_pieces(folder, "always")),
    "pieces at the start": lambda folder: TextTokenizer.from_folder(_pieces(folder, "first")),
    "pieces, old": lambda folder: TextTokenizer.from_folder(_pieces(folder, "legacy")),
    "base": lambda folder: text_tokenizer(folder, None),
    "base with bos": lambda folder: text_tokenizer(folder, None, adds_bos=True),
    "words": word_tokenizer,
}


def _pieces(folder: Path, kind: Any) -> Path:
    metaspace_tokenizer(folder, INST_SPACED, kind)
    return folder


@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompts_are_those_of_supervised_training(name: str, tmp_path: Path):
    tokenizer = TOKENIZERS[name](tmp_path / "tokenizer")
    answers = ["ok", "4", "word", "-7", "$x$", "\\boxed{4}", "Well, \n\nword", "(a) b", "Ab", "use"]
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": f"What is {k} ok?"}, {"role": "assistant", "content": answer}]}
        for k, answer in enumerate(answers * 4)
    ]
    for row in rows[::3]:
        row["messages"] = [*PAIR, *row["messages"]]
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", rows), loss_on="last")
    data, theirs = load_problems(replace(spec, loss_on="all"), MATH, tokenizer), load_data(spec, tokenizer)
    assert data.report.kept == theirs.report.kept == len(rows)
    for split in SPLITS:
        ours = [problem.tokens for problem in getattr(data, split)]
        assert ours == before_the_answer(getattr(theirs, split))
        assert all(ours)


def test_max3_for_the_micro_bases(tmp_path: Path):
    tokenizer, spec = word_tokenizer(tmp_path / "tokenizer"), DataSpec(source="max3", limit=60, max_length=32)
    data, theirs = load_problems(spec, MATH, tokenizer), load_data(spec, tokenizer)
    for split in SPLITS:
        assert [p.tokens for p in getattr(data, split)] == before_the_answer(getattr(theirs, split))
    for problem in every(data):
        assert tokenizer.encode(problem.problem.question) == list(problem.tokens)
        assert len(problem.tokens) == 5
    assert (data.report.kept, data.facts.longest) == (60, 13)


def test_an_answer_that_opens_reasoning_is_opened_so(tmp_path: Path):
    tokenizer = text_tokenizer(tmp_path, OPENS_REASONING)
    data = load_problems(DataSpec(source=jsonl(tmp_path / "d.jsonl", questions(3)), **SHORT), MATH, tokenizer)
    assert tokenizer.decode(data.train[0].tokens).endswith("<think>\n")


def test_a_text_s_end_is_tokenised_as_before_an_answer(tmp_path: Path):
    tokenizer = text_tokenizer(tmp_path, None)
    [tokens] = tokenizer.encode_prompts([tokenizer.render_prompt([Message(role="user", content="hm?")])])
    assert tokens != tuple(tokenizer.encode("hm?\n\n"))
    assert tokenizer.decode(tokens) == "hm?\n\n"


def test_prompts_do_not_depend_on_their_answers(tmp_path: Path):
    tokenizer = text_tokenizer(tmp_path, None)
    rows = [{"question": f"q{k}", "answer": answer} for answer in ("a", " 4", "\n\n-") for k in range(9)]
    data = load_problems(DataSpec(source=jsonl(tmp_path / "d.jsonl", rows)), MATH, tokenizer)
    tokens = {(p.problem.question, p.tokens) for p in every(data)}
    assert len(tokens) == 9


@pytest.mark.parametrize(
    ("template", "chat", "base"),
    [
        ("Q: {question}\nA:", "user\nQ: q0\nA:\nassistant\n", "Q: q0\nA:"),
        ("{question} {} \\boxed{4}", "user\nq0 {} \\boxed{4}\nassistant\n", "q0 {} \\boxed{4}"),
        ("{question}, {question}", "user\nq0, q0\nassistant\n", "q0, q0"),
        ("{question}\n\n", "user\nq0\n\n\nassistant\n", "q0\n\n"),
        # The blank before a word is the word's own: the model writes it.
        ("{question} so b is ", "user\nq0 so b is \nassistant\n", "q0 so b is "),
    ],
)
def test_templates(template: str, chat: str, base: str, tmp_path: Path):
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", [{"question": f"q{k}", "answer": "4"} for k in range(3)]))
    spec, rl = replace(spec, **SHORT), replace(MATH, template=template)
    for folder, model_template, expected in (("chat", CHATML, chat), ("base", None, base)):
        tokenizer = text_tokenizer(tmp_path / folder, model_template)
        [problem] = [p for p in every(load_problems(spec, rl, tokenizer)) if p.problem.question == "q0"]
        assert tokenizer.decode(problem.tokens).rstrip(" ") == expected.rstrip(" ")
        assert problem.problem == Problem(question="q0", answer="4")


def test_a_template_is_put_in_the_place_of_the_last_question_only(tmp_path: Path):
    system, answer = {"role": "system", "content": "s"}, PAIR[1]
    rows = [{"messages": [{"role": "user", "content": f"q{k}"}, answer]} for k in range(9)]
    rows += [
        {"messages": [system, *row["messages"], {"role": "user", "content": f"r{k}"}, answer]}
        for k, row in enumerate(rows)
    ]
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", rows))
    rl = replace(MATH, template="<{question}>")
    expected = {
        "chat": {"system\ns\nuser\nq0\nassistant\na\nuser\n<r0>\nassistant\n", "user\n<q0>\nassistant\n"},
        "base": {"s\n\nq0\n\na\n\n<r0>", "<q0>"},
    }
    for folder, model_template in (("chat", CHATML), ("base", None)):
        tokenizer = text_tokenizer(tmp_path / folder, model_template)
        found = [p for p in every(load_problems(spec, rl, tokenizer)) if p.problem.question in ("r0", "q0")]
        assert {tokenizer.decode(p.tokens) for p in found} == expected[folder]


def test_a_template_without_a_place_is_refused(tokenizer: TextTokenizer):
    with pytest.raises(SpecError, match=r"rl.template 'solve it' has no {question} in it"):
        load_problems(DataSpec(source="facts"), replace(MATH, template="solve it"), tokenizer)


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"overlong": "truncate"}, "a prompt can't be cut"), ({"loss_on": "last"}, "RL has no loss on the data")],
)
def test_settings_that_say_nothing_are_refused(tokenizer: TextTokenizer, setting: dict[str, Any], words: str):
    with pytest.raises(SpecError, match=words):
        load_problems(DataSpec(source="facts", **setting), MATH, tokenizer)


def gsm8k(number: int) -> list[dict[str, Any]]:
    return [
        {"question": f"Tom has {k} apples and buys twice as many.", "answer": f"Twice is {2 * k}.\n#### {3 * k}"}
        for k in range(number)
    ]


def test_rows_like_gsm8k(tmp_path: Path, tokenizer: TextTokenizer):
    rows = gsm8k(60)
    data = load_problems(DataSpec(source=jsonl(tmp_path / "d.jsonl", rows)), MATH, tokenizer)
    assert (len(data.train), len(data.validation), len(data.test)) == (54, 3, 3)
    assert (data.report.read, data.report.kept) == (60, 60)
    assert (data.report.train, data.report.validation, data.report.test) == (54, 3, 3)
    by_question = {row["question"]: row["answer"] for row in rows}
    assert {p.problem.question: p.problem.answer for p in every(data)} == by_question
    order = [row["question"] for row in rows]
    assert [p.problem.question for p in data.train] == [q for q in order if q in asked(data.train)]
    lengths = [len(p.tokens) for p in data.train]
    assert data.facts.num_examples == 54
    assert data.facts.num_tokens == sum(lengths)
    assert data.facts.num_completion_tokens == 54 * 16 * 8
    assert data.facts.longest == max(lengths) + 8
    assert not data.facts.approximate


def test_the_same_prompts_are_held_out_as_in_supervised_training(tmp_path: Path, tokenizer: TextTokenizer):
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", gsm8k(200)), validation_size=9, test_size=12, seed=3)
    data, theirs = load_problems(spec, MATH, tokenizer), load_data(spec, tokenizer)
    for split in SPLITS:
        assert [p.tokens for p in getattr(data, split)] == before_the_answer(getattr(theirs, split))


def test_no_scorer_and_no_limit_moves_a_prompt(tmp_path: Path, tokenizer: TextTokenizer):
    rows = [{"question": f"question {k} " + "x" * (k % 40), "answer": f"{k}"} for k in range(120)]
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", rows))
    whole = load_problems(spec, MATH, tokenizer)
    odd = load_problems(spec, MATH, tokenizer, usable=lambda problem: int(problem.answer) % 2 == 1)
    short = load_problems(replace(spec, max_length=60), MATH, tokenizer)
    templated = load_problems(spec, replace(MATH, template="{question}!"), tokenizer)
    assert (odd.report.unusable, odd.report.kept) == (60, 60)
    assert 0 < short.report.overlong < 120
    for split in SPLITS:
        assert asked(getattr(odd, split)) < asked(getattr(whole, split))
        assert asked(getattr(short, split)) < asked(getattr(whole, split))
        assert asked(getattr(templated, split)) == asked(getattr(whole, split))
    other = load_problems(replace(spec, seed=1), MATH, tokenizer)
    assert asked(other.test) != asked(whole.test)
    turned = load_problems(replace(spec, source=jsonl(tmp_path / "e.jsonl", rows[::-1])), MATH, tokenizer)
    assert asked(turned.test) == asked(whole.test)


def test_what_is_dropped_is_counted(tmp_path: Path, tokenizer: TextTokenizer):
    tools = [PAIR[0], {**PAIR[1], "tool_calls": [{"name": "f"}]}]
    rows: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": f"q{k}"}, PAIR[1]]} for k in range(20)]
    rows += [
        {"messages": PAIR[:1]},
        {"messages": []},
        {"messages": [PAIR[0], {"role": "assistant", "content": " \n"}]},
        {"messages": tools},
        {"messages": [{"role": "user", "content": " "}, PAIR[1]]},
        {"messages": [{"role": "system", "content": "s"}, PAIR[1]]},
        {"messages": [{"role": "user", "content": "q" * 80}, PAIR[1]]},
        {"messages": [{"role": "user", "content": "odd"}, {"role": "assistant", "content": "?"}]},
    ]
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", rows), max_length=60)
    report = load_problems(spec, MATH, tokenizer, usable=lambda problem: problem.answer != "?").report
    dropped = (report.without_answer, report.tool_calls, report.without_question, report.overlong, report.unusable)
    assert dropped == (3, 1, 2, 1, 1)
    assert report.read == report.kept + sum(dropped) == 28
    assert load_problems(replace(spec, limit=5), MATH, tokenizer).report.read == 5


def test_the_last_fitting_length_is_kept(tmp_path: Path, tokenizer: TextTokenizer):
    source = jsonl(tmp_path / "d.jsonl", [{"question": f"q{k}", "answer": "a"} for k in range(9)])
    length = len(load_problems(DataSpec(source=source), MATH, tokenizer).train[0].tokens)
    fits = load_problems(DataSpec(source=source, max_length=length + 8), MATH, tokenizer)
    assert (fits.report.kept, fits.facts.longest) == (9, length + 8)
    words = (
        rf"d.jsonl: none of 9 prompts fits: the shortest has {length} tokens, and with 8 of a completion that is more "
        rf"than the {length + 7} of max_length; raise --max-length or lower --max-new-tokens"
    )
    with pytest.raises(DataError, match=words):
        load_problems(DataSpec(source=source, max_length=length + 7), MATH, tokenizer)


def test_repeated_prompts_stay_on_one_side(tmp_path: Path, tokenizer: TextTokenizer):
    rows = [{"question": f"q{k % 20}", "answer": f"{k}"} for k in range(100)]
    data = load_problems(DataSpec(source=jsonl(tmp_path / "d.jsonl", rows)), MATH, tokenizer)
    train, validation, test = (asked(getattr(data, split)) for split in SPLITS)
    assert len(train) + len(validation) + len(test) == 20
    assert not train & validation and not train & test and not validation & test
    assert set(Counter(p.problem.question for p in data.train).values()) == {5}


def test_a_test_file_of_its_own(tmp_path: Path, tokenizer: TextTokenizer):
    source = jsonl(tmp_path / "a.jsonl", questions(40))
    new = [{"question": f"new {k}", "answer": "a"} for k in range(5)]
    own = jsonl(tmp_path / "b.jsonl", [*questions(3), *new, {"question": "none", "answer": ""}])
    data = load_problems(DataSpec(source=source, test_source=own), MATH, tokenizer)
    assert (data.report.test, data.report.test_overlaps, data.report.validation) == (5, 3, 2)
    assert (data.report.read, data.report.kept, data.report.without_answer) == (49, 48, 1)
    assert asked(data.test) == {f"new {k}" for k in range(5)}
    with pytest.raises(DataError, match="every prompt of the test split is in the training data too"):
        load_problems(DataSpec(source=source, test_source=source), MATH, tokenizer)
    none = jsonl(tmp_path / "c.jsonl", [{"question": "x"}])
    with pytest.raises(DataError, match=r"c.jsonl is a data set without answers"):
        load_problems(DataSpec(source=source, test_source=none), MATH, tokenizer)


WITHOUT: dict[str, tuple[dict[str, Any], str]] = {
    "question": ({"question": "q", "id": 1}, "columns question, id; name the answer's with --columns answer=COLUMN"),
    "prompt": ({"prompt": "q"}, "columns prompt; name the answer's with --columns completion=COLUMN"),
    "turns": ({"prompt": PAIR[:1], "solution": "a"}, "columns prompt, solution; name .* --columns completion=COLUMN"),
    "messages": ({"messages": PAIR[:1]}, "columns messages; end each conversation with the assistant's answer"),
    "empty": ({"instruction": "q", "output": None}, "columns instruction, output; name .* --columns output=COLUMN"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_data_without_answers(name: str, tmp_path: Path, tokenizer: TextTokenizer):
    row, words = WITHOUT[name]
    rows = [json.loads(json.dumps(row).replace('"q"', f'"q{k}"')) for k in range(3)]
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", rows), **SHORT)
    said = rf"d.jsonl is a data set without answers: none of its 3 rows has one, and the reward 'math' .*{words}"
    for rl in (MATH, replace(MATH, rewards=(*OWN.rewards, *MATH.rewards))):
        with pytest.raises(DataError, match=said):
            load_problems(spec, rl, tokenizer)
    for rl in (OWN, GYM, replace(MATH, rewards=(*OWN.rewards, *GYM.rewards))):
        data = load_problems(spec, rl, tokenizer)
        assert (data.report.kept, data.report.without_answer) == (3, 0)
        assert asked(every(data)) == {"q0", "q1", "q2"}
        assert {p.problem.answer for p in every(data)} == {""}
        assert sorted(json.dumps(p.problem.entry) for p in every(data)) == sorted(json.dumps(row) for row in rows)


def test_some_rows_without_an_answer(tmp_path: Path, tokenizer: TextTokenizer):
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", [{"question": "first"}, *questions(5)]), **SHORT)
    report = load_problems(spec, MATH, tokenizer).report
    assert (report.read, report.kept, report.without_answer) == (6, 5, 1)
    report = load_problems(spec, OWN, tokenizer).report
    assert (report.read, report.kept, report.without_answer) == (6, 6, 0)


def test_a_named_column_must_be_there(tmp_path: Path, tokenizer: TextTokenizer):
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", questions(5)), columns=(("answer", "solution"),), **SHORT)
    said = r"d.jsonl: column 'solution' is missing; it has question, answer; name .* --columns answer=COLUMN"
    for rl in (MATH, OWN):
        with pytest.raises(DataError, match=said):
            load_problems(spec, rl, tokenizer)


def test_what_a_conversation_asks(tmp_path: Path, tokenizer: TextTokenizer):
    again = {"role": "user", "content": "and then?"}
    rows = [{"messages": [{"role": "user", "content": f"q{k}"}, PAIR[1], again]} for k in range(3)]
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", rows), **SHORT)
    answered = load_problems(spec, MATH, tokenizer)
    assert {(p.problem.question, p.problem.answer) for p in every(answered)} == {(f"q{k}", "a") for k in range(3)}
    # A scorer that compares with nothing takes a conversation that ends with a question as it is.
    for problem in every(load_problems(spec, OWN, tokenizer)):
        assert (problem.problem.question, problem.problem.answer) == ("and then?", "")
        assert tokenizer.decode(problem.tokens).endswith("assistant\na\nuser\nand then?\nassistant\n")


def test_turns_with_an_answer_in_another_column(tmp_path: Path, tokenizer: TextTokenizer):
    rows = [{"prompt": [{"role": "user", "content": f"q{k}"}], "solution": "$4$"} for k in range(3)]
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", rows), columns=(("completion", "solution"),), **SHORT)
    data = load_problems(spec, MATH, tokenizer)
    assert {(p.problem.question, p.problem.answer) for p in every(data)} == {(f"q{k}", "$4$") for k in range(3)}
    assert load_data(spec, tokenizer).report.kept == 3


def test_entries_are_rows_where_a_scorer_may_read_them(tmp_path: Path, tokenizer: TextTokenizer):
    rows = [{**row, "level": k, "tags": ["a"]} for k, row in enumerate(questions(5))]
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", rows), **SHORT)
    entries = {p.problem.question: p.problem.entry for p in every(load_problems(spec, OWN, tokenizer))}
    assert entries == {row["question"]: row for row in rows}
    assert all(p.problem.entry == {} for p in every(load_problems(spec, MATH, tokenizer)))


def test_reasoning_tasks_bring_their_items(tokenizer: TextTokenizer):
    reasoning_gym = pytest.importorskip("reasoning_gym")
    spec = DataSpec(source="reasoning-gym:chain_sum", limit=12, seed=5, **SHORT)
    data, theirs = load_problems(spec, GYM, tokenizer), load_data(spec, tokenizer)
    task = reasoning_gym.create_dataset("chain_sum", size=12, seed=5)
    items = {item["question"]: item for item in task}
    for split in SPLITS:
        assert [p.tokens for p in getattr(data, split)] == before_the_answer(getattr(theirs, split))
    for problem in (p.problem for p in every(data)):
        item = items[problem.question]
        assert (problem.answer, problem.entry) == (item["answer"], {"task": "chain_sum", "item": item})
        assert task.score_answer(problem.answer, entry=problem.entry["item"]) == 1.0
    assert all(p.problem.entry["task"] == "chain_sum" for p in every(load_problems(spec, MATH, tokenizer)))


def test_the_rows_of_reasoning_tasks_are_what_they_were():
    pytest.importorskip("reasoning_gym")
    spec = DataSpec(source="reasoning-gym:chain_sum", limit=3)
    rows = list(open_source(spec).rows())
    assert all(set(row) == {"question", "answer"} for row in rows)
    assert rows == [row for row, _ in open_source(spec).problems()]
    assert generated.VERSION == 1


def test_documents_are_no_questions(tmp_path: Path, tokenizer: TextTokenizer):
    source = jsonl(tmp_path / "d.jsonl", [{"text": "x"}] * 3)
    for spec in (DataSpec(source=source), DataSpec(source=source, format="text"), DataSpec(source="markov", limit=9)):
        with pytest.raises(DataError, match=r"format 'text' holds documents, .* --columns question=COLUMN"):
            load_problems(spec, OWN, tokenizer)
    renamed = DataSpec(source=source, columns=(("question", "text"),), **SHORT)
    with pytest.raises(DataError, match="too few different prompts"):
        load_problems(renamed, OWN, tokenizer)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([], {}, "no problem is left of 0 rows .it has no rows."),
        ([{"a": 1}], {}, "no known format has the columns a; rename some with --columns"),
        ([{"question": ["x"], "answer": "a"}], {}, "row 1: column 'question' holds list, text is needed"),
        ([{"answer": "a", "question": None}] * 3, {}, "of 3 rows .3 without a question.; check format, columns"),
        (questions(3), {"test_size": 3}, "3 test and 1 validation examples leave nothing of 3"),
        (questions(9), {"test_size": 0}, "test_size is 0"),
        (questions(9), {"validation_size": 0}, "validation_size is 0"),
    ],
)
def test_what_is_wrong_with_rows(
    tmp_path: Path, tokenizer: TextTokenizer, rows: list[Any], options: dict[str, Any], words: str
):
    with pytest.raises(DataError, match=words) as caught:
        load_problems(DataSpec(source=jsonl(tmp_path / "d.jsonl", rows), **options), MATH, tokenizer)
    assert "\n" not in str(caught.value)
    assert "d.jsonl" in str(caught.value)


def test_answers_that_no_scorer_reads(tmp_path: Path, tokenizer: TextTokenizer):
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", questions(40)))
    with pytest.raises(DataError, match=r"of 40 rows \(40 with an answer that the scorers can't read\)"):
        load_problems(spec, MATH, tokenizer, usable=lambda problem: False)
    whole = load_problems(spec, MATH, tokenizer)
    held_out = asked(whole.test)
    with pytest.raises(DataError, match=r"no test problem is left of 2 \(too long, or none that can be scored\)"):
        load_problems(spec, MATH, tokenizer, usable=lambda problem: problem.question not in held_out)


def test_a_template_s_refusal_names_the_row(tmp_path: Path):
    refuses = "{% if messages[0]['content'] == 'q2' %}{{ raise_exception('not this') }}{% endif %}" + CHATML
    rows = [{"question": f"q{k}", "answer": "a"} for k in range(5)]
    with pytest.raises(DataError, match=r"d.jsonl, row 3: the model's chat template refuses .*not this"):
        load_problems(DataSpec(source=jsonl(tmp_path / "d.jsonl", rows)), MATH, text_tokenizer(tmp_path, refuses))


def test_the_content_hash_moves_with_what_decides_problems(tmp_path: Path, tokenizer: TextTokenizer):
    source = jsonl(tmp_path / "d.jsonl", questions(60))
    spec = DataSpec(source=source)
    base = load_problems(spec, MATH, tokenizer).content_hash

    def hashed(rl: RLSpec = MATH, other: TextTokenizer = tokenizer, **changed: Any) -> str:
        return load_problems(replace(spec, **changed), rl, other).content_hash

    same = {
        "again": hashed(),
        "another path": hashed(source=jsonl(tmp_path / "copy.jsonl", questions(60))),
        "group": hashed(replace(MATH, group=4)),
        "temperature": hashed(replace(MATH, sampling=replace(MATH.sampling, temperature=0.5))),
        "weight": hashed(replace(MATH, rewards=(RewardSpec(source="math", weight=2.0),))),
        "updates": hashed(replace(MATH, updates_per_batch=2, eval_samples=3)),
    }
    assert set(same.values()) == {base}, same
    moved = {
        "rows": hashed(source=jsonl(tmp_path / "e.jsonl", questions(61))),
        "test rows": hashed(test_source=jsonl(tmp_path / "f.jsonl", [{"question": "x", "answer": "y"}])),
        "other test rows": hashed(test_source=jsonl(tmp_path / "g.jsonl", [{"question": "x", "answer": "z"}])),
        "format": hashed(format="question-answer"),
        "columns": hashed(columns=(("question", "question"),)),
        "max_length": hashed(max_length=999),
        "validation_size": hashed(validation_size=7),
        "test_size": hashed(test_size=7),
        "limit": hashed(limit=50),
        "seed": hashed(seed=1),
        "template": hashed(replace(MATH, template="{question}")),
        "max_new_tokens": hashed(replace(MATH, sampling=SamplingSpec(max_new_tokens=9))),
        "tokenizer": hashed(other=text_tokenizer(tmp_path / "other", LLAMA_3)),
        "usable": load_problems(spec, MATH, tokenizer, usable=lambda p: p.question != "question 0").content_hash,
    }
    assert len({base, *moved.values()}) == len(moved) + 1, moved
    # Those that are left: hub settings, whose content is the source's hash, and what is refused in RL.
    told = {"source", "test_source", "config", "split", "test_split", "loss_on", "overlong"}
    assert {field.name for field in fields(DataSpec)} == told | (set(moved) & {f.name for f in fields(DataSpec)})


PROGRAM = """
import json, sys
from pathlib import Path
from lowregret.data.problems import load_problems
from lowregret.data.tokenizer import TextTokenizer
from lowregret.specs import DataSpec, RewardSpec, RLSpec, SamplingSpec

assert "torch" not in sys.modules
rl = RLSpec(rewards=(RewardSpec(source="math"),), sampling=SamplingSpec(max_new_tokens=8))
data = load_problems(DataSpec(source=sys.argv[1]), rl, TextTokenizer.from_folder(Path(sys.argv[2])))
assert "torch" not in sys.modules
print(json.dumps([data.content_hash, [p.tokens for p in data.train], [p.problem.question for p in data.test]]))
"""


def test_another_process_finds_the_same(tmp_path: Path):
    source, folder = jsonl(tmp_path / "d.jsonl", questions(60)), tmp_path / "tokenizer"
    data = load_problems(DataSpec(source=source), MATH, text_tokenizer(folder))
    command = [sys.executable, "-c", PROGRAM, source, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    content_hash, tokens, test = json.loads(done.stdout)
    assert content_hash == data.content_hash
    assert [tuple(t) for t in tokens] == [p.tokens for p in data.train]
    assert test == [p.problem.question for p in data.test]
