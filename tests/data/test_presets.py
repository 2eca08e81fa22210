"""Short names fill what was left at its default, and rows with the hub sets' columns become the right problems."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from data.rows_on_disk import SHORT, jsonl
from data.tokenizers_on_disk import text_tokenizer
from lowregret.data.load import load_data
from lowregret.data.presets import BOXED, PRESETS, with_preset
from lowregret.data.problems import load_problems
from lowregret.data.questions import check_template
from lowregret.specs import DataSpec, RewardSpec, RLSpec, SamplingSpec

RL = RLSpec(rewards=(), sampling=SamplingSpec(max_new_tokens=8))
ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "q{k}", "answer": "Half of 8 is <<8/2=4>>4.\n#### 4"},
    "math": {"problem": "q{k}", "level": "Level 5", "type": "Algebra", "solution": "So it is $\\boxed{4}$."},
    "deepmath": {
        "question": "q{k}",
        "final_answer": "4",
        "difficulty": 4.5,
        "topic": "Algebra",
        "r1_solution_1": "long",
        "r1_solution_2": "long",
        "r1_solution_3": "long",
    },
    "openr1-math": {
        "problem": "q{k}",
        "solution": "long",
        "answer": "4",
        "problem_type": "Algebra",
        "generations": ["long", "long"],
        "correctness_math_verify": [True, False],
        "messages": [{"role": "user", "content": "q{k}"}, {"role": "assistant", "content": "long"}],
    },
}
ANSWERS = {
    "gsm8k": "Half of 8 is <<8/2=4>>4.\n#### 4",
    "math": "So it is $\\boxed{4}$.",
    "deepmath": "4",
    "openr1-math": "4",
}


def rows_of(name: str, number: int, first: int = 0) -> list[dict[str, Any]]:
    asked = "question" if "question" in ROWS[name] else "problem"
    return [{**ROWS[name], asked: f"q{k}"} for k in range(first, first + number)]


def test_every_preset_has_rows_here():
    assert set(ROWS) == set(ANSWERS) == set(PRESETS)
    for preset in PRESETS.values():
        check_template(preset.template)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_its_hub_set(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    splits = {"train": datasets.Dataset.from_list(rows_of(name, 30))}
    if name in ("gsm8k", "math"):
        splits["test"] = datasets.Dataset.from_list(rows_of(name, 4, first=30))

    def load(source: str, config: str | None, *, split: str) -> datasets.Dataset:
        assert (source, config) == (PRESETS[name].source, PRESETS[name].config)
        return splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda source, config: list(splits))
    spec, rl = with_preset(DataSpec(source=name), RL)
    data = load_problems(spec, rl, text_tokenizer(tmp_path))
    problem = data.train[0].problem
    assert problem.question in {f"q{k}" for k in range(30)}
    assert {p.problem.answer for p in (*data.train, *data.test)} == {ANSWERS[name]}
    assert rl.rewards == (RewardSpec(source="math"),)
    if "test" in splits:
        assert sorted(p.problem.question for p in data.test) == [f"q{k}" for k in range(30, 34)]
    else:
        assert data.report.train + data.report.validation + data.report.test == 30


@pytest.mark.parametrize("name", PRESETS)
def test_a_local_file_of_the_same_columns(name: str, tmp_path: Path):
    spec, rl = with_preset(DataSpec(source=name), RL)
    local = replace(spec, source=jsonl(tmp_path / "d.jsonl", rows_of(name, 9)), config=None, **SHORT)
    tokenizer = text_tokenizer(tmp_path)
    data = load_problems(local, rl, tokenizer)
    assert data.report.kept == 9
    assert data.train[0].problem.answer == ANSWERS[name]
    prompt = tokenizer.decode(data.train[0].tokens)
    assert prompt == f"user\n{BOXED.replace('{question}', data.train[0].problem.question)}\nassistant\n"
    if name == "gsm8k":
        plain = load_problems(replace(local, format="auto", columns=()), rl, tokenizer)
        assert plain.train == data.train
    assert load_data(local, tokenizer).report.kept == 9


def test_only_defaults_are_filled():
    given = DataSpec(source="math", config="algebra", columns=(("question", "problem"), ("answer", "type")), limit=7)
    assert with_preset(given) == (replace(given, source="DigitalLearningGmbH/MATH-lighteval"), None)
    spec, _ = with_preset(DataSpec(source="openr1-math", format="messages"))
    assert (spec.format, spec.columns, spec.config) == ("messages", (), "default")
    rewards = (RewardSpec(source="exact"),)
    _, rl = with_preset(DataSpec(source="gsm8k"), replace(RL, rewards=rewards))
    assert (rl.rewards, rl.template) == (rewards, None)
    _, rl = with_preset(DataSpec(source="gsm8k"), replace(RL, template="{question}", group=4))
    assert (rl.rewards[0].source, rl.template, rl.group) == ("math", "{question}", 4)
    _, rl = with_preset(DataSpec(source="gsm8k"), replace(RL, rewards=(RewardSpec(source="math"),)))
    assert rl.template == BOXED


def test_other_sources_are_left_as_they_are():
    for source in ("facts", "openai/gsm8k", "rows.jsonl", "reasoning-gym:chain_sum"):
        spec = DataSpec(source=source)
        assert with_preset(spec, RL) == (spec, RL)
        assert with_preset(spec) == (spec, None)
