"""From a DataSpec to problems: prompts as tokens, with what is needed to score an answer to them.

Rows, formats, sizes and splits are those of supervised training (`load`): the prompt's tokens are those that stand
before the answer there, and a prompt is held out here if and only if it is held out there. Splits are chosen before a
problem is dropped because it can't be scored or is too long, so that no scorer and no limit moves a prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice

import numpy as np

from lowregret.data.load import refuse_no_held_out
from lowregret.data.questions import Question, QuestionReader, check_template
from lowregret.data.sources import Row, Source, open_source, open_test_source
from lowregret.data.splits import Splits, prompt_hash, split
from lowregret.data.tokenise import CHUNK
from lowregret.data.tokenizer import Rendered, TextTokenizer
from lowregret.errors import DataError, SpecError
from lowregret.specs import DataFacts, DataSpec, Problem, RLSpec

RULES = 1
"""Version of the rules that make problems of rows: part of the content hash."""
COMPARING = ("math", "exact")
"""Scorers that compare with the data's answer and look at nothing else of a row."""


@dataclass(frozen=True, kw_only=True)
class PromptProblem:
    """A problem and its prompt.

    >>> PromptProblem(problem=Problem(question="2 + 2?", answer="4"), tokens=(17, 10, 17, 30)).tokens
    (17, 10, 17, 30)
    """

    problem: Problem
    tokens: tuple[int, ...]
    """The prompt up to where the model takes over, with the header that opens an answer."""


@dataclass(kw_only=True)
class ProblemReport:
    """What became of the rows, those of the data's own test split included.

    `read` is the sum of `kept` and of every reason to drop a row; the splits add up to `kept` but for `test_overlaps`
    and for what an own test split has beyond its size.

    >>> ProblemReport(read=10, kept=9, unusable=1).kept
    9
    """

    read: int = 0
    kept: int = 0
    without_answer: int = 0
    """Rows without an answer, or with an empty one, where a scorer compares with it; dropped."""
    without_question: int = 0
    """Rows in which the user asks nothing; dropped."""
    tool_calls: int = 0
    """Rows in which the assistant calls tools, which chat templates are not asked to render here; dropped."""
    unusable: int = 0
    """Rows whose answer the scorers can't read, so that no completion could earn a reward; dropped."""
    overlong: int = 0
    """Rows whose prompt and longest completion are more than max_length; dropped."""
    test_overlaps: int = 0
    """Rows of the data's own test split whose prompt is in the training data; dropped."""
    train: int = 0
    validation: int = 0
    test: int = 0


@dataclass(frozen=True, kw_only=True)
class ProblemData:
    """Problems ready to train on, in the order of the rows.

    >>> sorted(ProblemData.__dataclass_fields__)
    ['content_hash', 'facts', 'report', 'test', 'train', 'validation']
    """

    train: tuple[PromptProblem, ...]
    validation: tuple[PromptProblem, ...]
    test: tuple[PromptProblem, ...]
    facts: DataFacts
    """Of one epoch: prompts, their tokens (each counted once), and the longest prompt with the longest completion.
    Completions are not known before they are drawn: `num_completion_tokens` is their upper bound, prompts x group x
    max_new_tokens."""
    report: ProblemReport
    content_hash: str
    """Of the rows, the template, the tokenizer, and what else decides problems and splits: part of a run's identity."""


def any_problem(problem: Problem) -> bool:
    """For scorers that can score an answer to any problem."""
    return True


def load_problems(
    spec: DataSpec, rl: RLSpec, tokenizer: TextTokenizer, *, usable: Callable[[Problem], bool] = any_problem
) -> ProblemData:
    """Read a data set as problems and split it.

    Args:
        usable: whether the scorers can read a problem's answer.

    Raises:
        SpecError: the template has no `{question}`, or a setting says nothing in RL.
        DataError: the data can't be found or read, it has no answers, or a split is empty.
    """
    check_template(rl.template)
    _refuse_supervised_settings(spec)
    refuse_no_held_out(spec)
    source, own_test = open_source(spec), open_test_source(spec)
    rows = _Reading(spec, rl, tokenizer, usable).read(source, spec.limit)
    test_rows = _Reading(spec, rl, tokenizer, usable).read(own_test, None) if own_test is not None else None
    chosen = split(
        np.array(rows.hashes, dtype=np.uint64),
        None if test_rows is None else np.array(test_rows.hashes, dtype=np.uint64),
        validation_size=spec.validation_size,
        test_size=spec.test_size,
        where=source.name,
    )
    problems = [*rows.problems, *(test_rows.problems if test_rows is not None else ())]
    indices = {"train": chosen.train, "validation": chosen.validation, "test": chosen.test}
    splits = {name: tuple(p for i in which if (p := problems[i]) is not None) for name, which in indices.items()}
    for name, kept in splits.items():
        if not kept:
            raise DataError(
                f"{source.name}: no {name} problem is left of {len(indices[name])} (too long, or none that can be "
                "scored); raise --max-length or hold out more"
            )
    report = rows.report if test_rows is None else _sum(rows.report, test_rows.report)
    counts = {name: len(kept) for name, kept in splits.items()}
    return ProblemData(
        **splits,
        facts=_facts(splits["train"], rl),
        report=replace(report, test_overlaps=chosen.overlaps, **counts),
        content_hash=_content_hash(spec, rl, tokenizer, (source, own_test), problems, chosen),
    )


class _Reading:
    """Rows of one source on their way to problems, and what became of them."""

    def __init__(self, spec: DataSpec, rl: RLSpec, tokenizer: TextTokenizer, usable: Callable[[Problem], bool]) -> None:
        self.spec, self.rl, self.tokenizer, self.usable = spec, rl, tokenizer, usable
        self.report = ProblemReport()
        self.hashes: list[int] = []
        """Prompt hash of every row that the splits are chosen from."""
        self.problems: list[PromptProblem | None] = []
        """Of each of these rows; None where it was dropped."""
        self.shortest: int | None = None
        """Tokens of the shortest prompt that was seen."""
        self._waiting: list[tuple[int, Problem, Rendered]] = []
        self._comparing = tuple(reward.source for reward in rl.rewards if reward.source in COMPARING)
        self._with_rows = len(self._comparing) < len(rl.rewards)

    def read(self, source: Source, limit: int | None) -> _Reading:
        """Read the rows of a source.

        Raises:
            DataError: a row can't be read or used, or nothing is left.
        """
        reader = None
        for number, (row, entry) in enumerate(islice(source.problems(), limit), start=1):
            if reader is None:
                reader = QuestionReader(self.spec, [*map(str, row)], source.name, open_ended=not self._comparing)
            self.report.read += 1
            question = reader.read(number, row)
            if question.calls_tools:
                self.report.tool_calls += 1
            elif self._comparing and not question.answer.strip():
                self.report.without_answer += 1
            else:
                self._add(question, entry, entry is not row, f"{source.name}, row {number}")
        self._tokenise()
        if reader is not None:
            reader.check_columns()
        self._refuse_empty(source.name, reader)
        return self

    def _add(self, question: Question, entry: Row, needed: bool, where: str) -> None:
        """Note the row for the splits, and render its prompt if it is a problem."""
        self.hashes.append(prompt_hash(question.key, self.spec.seed))
        self.problems.append(None)
        if not question.text.strip():
            self.report.without_question += 1
            return
        # Rows can hold whole solutions that no scorer reads: 5 GB for the 100,000 problems of DeepMath.
        kept = entry if needed or self._with_rows else {}
        problem = Problem(question=question.text, answer=question.answer, entry=kept)
        if not self.usable(problem):
            self.report.unusable += 1
            return
        template = self.rl.template
        try:
            rendered = self.tokenizer.render_prompt(question.filled(template), as_it_stands=template is not None)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        self._waiting.append((len(self.problems) - 1, problem, rendered))
        if len(self._waiting) == CHUNK:
            self._tokenise()

    def _tokenise(self) -> None:
        """Tokens of the prompts that wait for it, where they are short enough."""
        encoded = self.tokenizer.encode_prompts([rendered for _, _, rendered in self._waiting])
        for (place, problem, _), tokens in zip(self._waiting, encoded, strict=True):
            self.shortest = len(tokens) if self.shortest is None else min(self.shortest, len(tokens))
            if len(tokens) + self.rl.sampling.max_new_tokens > self.spec.max_length:
                self.report.overlong += 1
            else:
                self.problems[place] = PromptProblem(problem=problem, tokens=tokens)
                self.report.kept += 1
        self._waiting.clear()

    def _refuse_empty(self, where: str, reader: QuestionReader | None) -> None:
        report, longest = self.report, self.rl.sampling.max_new_tokens
        if report.kept:
            return
        if reader is not None and report.without_answer == report.read:
            raise DataError(
                f"{where} is a data set without answers: none of its {report.read} rows has one, and the reward "
                f"{self._comparing[0]!r} compares with it; it has the columns {', '.join(reader.columns)}; "
                f"{reader.how_to_answer()}, or score with a function of your own"
            )
        if report.overlong:
            raise DataError(
                f"{where}: none of {report.overlong} prompts fits: the shortest has {self.shortest} tokens, and with "
                f"{longest} of a completion that is more than the {self.spec.max_length} of max_length; "
                "raise --max-length or lower --max-new-tokens"
            )
        reasons = {
            "without an answer": report.without_answer,
            "without a question": report.without_question,
            "that call tools": report.tool_calls,
            "with an answer that the scorers can't read": report.unusable,
        }
        counts = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number) or "it has no rows"
        raise DataError(
            f"{where}: no problem is left of {report.read} rows ({counts}); check format, columns and reward"
        )


def _refuse_supervised_settings(spec: DataSpec) -> None:
    """A prompt that is cut asks something else, and a completion has one turn: nothing here could obey these."""
    if spec.overlong != DataSpec.overlong:
        raise SpecError(f"data.overlong is {spec.overlong!r}, and a prompt can't be cut; leave --overlong out in RL")
    if spec.loss_on != DataSpec.loss_on:
        raise SpecError(f"data.loss_on is {spec.loss_on!r}, and RL has no loss on the data; leave --loss-on out in RL")


def _facts(train: tuple[PromptProblem, ...], rl: RLSpec) -> DataFacts:
    lengths = [len(problem.tokens) for problem in train]
    completion = rl.sampling.max_new_tokens
    return DataFacts(
        num_examples=len(train),
        num_tokens=sum(lengths),
        num_completion_tokens=len(train) * rl.group * completion,
        longest=max(lengths) + completion,
    )


def _sum(one: ProblemReport, other: ProblemReport) -> ProblemReport:
    names = [field.name for field in fields(ProblemReport)]
    return ProblemReport(**{name: getattr(one, name) + getattr(other, name) for name in names})


def _content_hash(
    spec: DataSpec,
    rl: RLSpec,
    tokenizer: TextTokenizer,
    sources: tuple[Source, Source | None],
    problems: list[PromptProblem | None],
    chosen: Splits,
) -> str:
    """Which rows were dropped, and where the others stand, is part of it: `usable` decides that too."""
    places = np.full(len(problems), -1, dtype=np.int8)
    for place, rows in enumerate((chosen.train, chosen.validation, chosen.test)):
        places[rows] = place
    places[[index for index, problem in enumerate(problems) if problem is None]] = -2
    parts = {
        "rules": RULES,
        "spec": asdict(replace(spec, source="", test_source=None)),
        "sources": [source and source.content_hash for source in sources],
        "tokenizer": tokenizer.content_hash,
        "template": rl.template,
        "max_new_tokens": rl.sampling.max_new_tokens,
        "places": hashlib.sha256(places.tobytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
