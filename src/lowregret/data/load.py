"""From a DataSpec to tokenised splits, streamed to disk once and cached by the content of data, spec and tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from lowregret.data.conversations import Conversation
from lowregret.data.examples import ExampleStore, ExampleWriter
from lowregret.data.formats import converter, detect
from lowregret.data.sources import Source, open_source, open_test_source, parse_source
from lowregret.data.splits import Splits, prompt_hash, split
from lowregret.data.tokenizer import Encoded, TextTokenizer
from lowregret.errors import DataError
from lowregret.folders import cache_folder
from lowregret.specs import DataFacts, DataSpec

Progress = Callable[[int, int | None], None]
"""Called with the rows done and, where known, the rows there are."""
CHUNK = 512
"""Rows tokenised at once."""
LAYOUT = 1
"""Version of the cache's layout and of the rules that make it."""


@dataclass(kw_only=True)
class DataReport:
    """What became of the rows.

    >>> DataReport(read=10, kept=9, empty=1).kept
    9
    """

    read: int = 0
    kept: int = 0
    empty: int = 0
    """Rows without an answer; dropped."""
    overlong: int = 0
    """Rows longer than max_length; dropped."""
    truncated: int = 0
    """Rows cut to max_length."""
    masked: int = 0
    """Rows in which no token carries loss (a truncated answer, say); dropped."""
    turns_without_loss: int = 0
    """Earlier answers that the chat template rewrites; they carry no loss."""
    test_overlaps: int = 0
    """Test rows whose prompt is in the training data; dropped."""
    train: int = 0
    validation: int = 0
    test: int = 0


@dataclass(frozen=True, kw_only=True)
class TokenizedData:
    """A data set ready to train on.

    >>> sorted(TokenizedData.__dataclass_fields__)
    ['content_hash', 'facts', 'report', 'test', 'train', 'validation']
    """

    train: ExampleStore
    validation: ExampleStore
    test: ExampleStore
    facts: DataFacts
    report: DataReport
    content_hash: str
    """Of the rows, the spec and the tokenizer: part of a run's identity."""


def load_data(spec: DataSpec, tokenizer: TextTokenizer, *, progress: Progress | None = None) -> TokenizedData:
    """Tokenise and split a data set, or take it from the cache.

    Raises:
        DataError: the data can't be found or read, or nothing is left to train on.
    """
    source, own_test = open_source(spec), open_test_source(spec)
    key = _key(spec, source, own_test, tokenizer)
    folder = cache_folder() / "data" / key
    if not (folder / "report.json").is_file():
        _make(folder, spec, source, own_test, tokenizer, progress or (lambda done, total: None))
    report = DataReport(**json.loads((folder / "report.json").read_text()))
    stores = {name: ExampleStore(folder, np.load(folder / f"{name}.npy")) for name in ("train", "validation", "test")}
    train = stores["train"]
    facts = DataFacts(
        num_examples=len(train),
        num_tokens=train.num_tokens,
        num_completion_tokens=train.num_completion_tokens,
        longest=int(train.lengths.max()),
    )
    return TokenizedData(**stores, facts=facts, report=report, content_hash=key)


def load_eval_data(source: str, like: DataSpec, tokenizer: TextTokenizer) -> ExampleStore:
    """Further held-out data, tokenised as `like` says: at most its test size (or 512) examples, chosen by hash.

    Args:
        source: as `DataSpec.source`; a hub id may carry config and split (`openai/gsm8k:main:test`).
    """
    plain = replace(like, config=None, split="train", test_split=None, test_source=None, format="auto", columns=())
    spec = replace(plain, **parse_source(source))  # type: ignore[arg-type]
    size = like.test_size or 512
    data = load_data(replace(spec, validation_size=None, test_size=None), tokenizer)
    everything = np.concatenate([data.test.indices, data.validation.indices, data.train.indices])
    data.test.indices = np.sort(everything[:size])
    return data.test


def _key(spec: DataSpec, source: Source, own_test: Source | None, tokenizer: TextTokenizer) -> str:
    parts = {
        "layout": LAYOUT,
        "spec": asdict(replace(spec, source="", test_source=None)),
        "source": source.content_hash,
        "test": own_test.content_hash if own_test else None,
        "tokenizer": tokenizer.content_hash,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _make(
    folder: Path, spec: DataSpec, source: Source, own_test: Source | None, tokenizer: TextTokenizer, progress: Progress
) -> None:
    """Tokenise into a temporary folder and move it into place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".data-"))
    report = DataReport()
    try:
        with ExampleWriter(temporary) as writer:
            hashes = _write_rows(source, spec, tokenizer, writer, report, progress)
            test_hashes = None
            if own_test is not None:
                test_hashes = _write_rows(own_test, replace(spec, limit=None), tokenizer, writer, report, progress)
        _refuse_empty(source.name, len(hashes), report)
        chosen = split(
            hashes, test_hashes, validation_size=spec.validation_size, test_size=spec.test_size, where=source.name
        )
        _write_splits(temporary, chosen, report)
        if folder.exists():
            return  # another process was faster
        os.rename(temporary, folder)
    except OSError as error:
        raise DataError(
            f"can't write the tokenised data to {folder}: {error}; free some disk or set LOWREGRET_CACHE"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_splits(folder: Path, chosen: Splits, report: DataReport) -> None:
    report.test_overlaps = chosen.overlaps
    report.train, report.validation, report.test = len(chosen.train), len(chosen.validation), len(chosen.test)
    for name in ("train", "validation", "test"):
        np.save(folder / f"{name}.npy", getattr(chosen, name))
    (folder / "report.json").write_text(json.dumps(asdict(report)))


def _write_rows(
    source: Source,
    spec: DataSpec,
    tokenizer: TextTokenizer,
    writer: ExampleWriter,
    report: DataReport,
    progress: Progress,
) -> np.ndarray:
    """Tokenise the rows of one source; prompt hashes of the rows kept."""
    kept: list[int] = []
    done = 0
    for chunk in _chunks(_conversations(source, spec, report), CHUNK):
        for conversation, encoded in zip(chunk, tokenizer.encode_batch(chunk, spec.loss_on), strict=True):
            fitted = _fit(encoded, spec, report)
            if fitted is None:
                continue
            writer.add(fitted.tokens, fitted.completion)
            kept.append(prompt_hash(conversation.prompt or conversation.messages[0].content, spec.seed))
            report.kept += 1
        done += len(chunk)
        progress(done, spec.limit)
    return np.array(kept, dtype=np.uint64)


def _conversations(source: Source, spec: DataSpec, report: DataReport) -> Iterator[Conversation]:
    """Rows that have something to learn from, as conversations."""
    convert = None
    for number, row in enumerate(islice(source.rows(), spec.limit), start=1):
        if convert is None:
            name = detect(tuple(_renamed(row, spec)), source.name) if spec.format == "auto" else spec.format
            convert = converter(name, spec.columns, source.name)
        report.read += 1
        conversation = convert(number, row)
        if not conversation.messages or conversation.is_empty:
            report.empty += 1
        else:
            yield conversation


def _renamed(row: object, spec: DataSpec) -> list[str]:
    back = {actual: column for column, actual in spec.columns}
    return [back.get(str(column), str(column)) for column in row]  # type: ignore[attr-defined]


def _fit(encoded: Encoded, spec: DataSpec, report: DataReport) -> Encoded | None:
    """The example within max_length, or None where it is dropped; counts either way."""
    report.turns_without_loss += encoded.turns_without_loss
    if len(encoded.tokens) > spec.max_length:
        if spec.overlong == "drop":
            report.overlong += 1
            return None
        report.truncated += 1
        cut = slice(spec.max_length)
        encoded = replace(encoded, tokens=encoded.tokens[cut], completion=encoded.completion[cut])
    if not encoded.completion[1:].any():
        report.masked += 1
        return None
    return encoded


def _refuse_empty(where: str, kept: int, report: DataReport) -> None:
    if kept:
        return
    reasons = {"empty answers": report.empty, "too long": report.overlong, "no token with loss": report.masked}
    counts = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number) or "it has no rows"
    raise DataError(f"{where}: nothing to train on; of {report.read} rows none is left ({counts})")


def _chunks(items: Iterator[Conversation], size: int) -> Iterator[list[Conversation]]:
    while chunk := list(islice(items, size)):
        yield chunk
