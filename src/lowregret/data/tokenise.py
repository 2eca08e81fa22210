"""Rows to tokens on disk, once: cached by the content of the data, the tokenizer and all of the spec that matters here.

Guarantee: no more than `CHUNK` rows or `CHUNK_CHARACTERS` and one row are held as text; what stays in memory is about
30 bytes a row. An entry of the cache is whole or not there, also where two processes make the same one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from lowregret.data.conversations import Conversation
from lowregret.data.examples import ExampleWriter, Indices, Mask
from lowregret.data.formats import converter, detect
from lowregret.data.sources import Source
from lowregret.data.splits import Hashes, prompt_hash
from lowregret.data.tokenizer import Encoded, Rendered, TextTokenizer
from lowregret.errors import DataError
from lowregret.folders import cache_folder
from lowregret.specs import DataSpec

Progress = Callable[[int, int | None], None]
"""Called with the rows done and, where known, the rows there are."""
CHUNK = 512
"""Rows tokenised at once."""
CHUNK_CHARACTERS = 4_000_000
"""Characters tokenised at once, where rows are long: each takes about 100 bytes on the way."""
LAYOUT = 4
"""Version of the cache's layout and of the rules that make it."""
HASHES, KEPT, SUMMARY = "hashes.npy", "kept.npy", "summary.json"


@dataclass(kw_only=True)
class DataReport:
    """What became of the rows.

    >>> DataReport(read=10, kept=9, empty=1).kept
    9
    """

    read: int = 0
    kept: int = 0
    empty: int = 0
    """Rows without an answer, or with an empty one; dropped."""
    tool_calls: int = 0
    """Rows in which the assistant calls tools, which chat templates are not asked to render here; dropped."""
    overlong: int = 0
    """Rows longer than max_length; dropped."""
    truncated: int = 0
    """Rows cut to max_length."""
    masked: int = 0
    """Rows in which no token carries loss (a truncated answer, say); dropped."""
    turns_without_loss: int = 0
    """Earlier answers that the chat template rewrites; they carry no loss."""
    test_overlaps: int = 0
    """Rows of the data's own test split whose prompt is in the training data; dropped."""
    train: int = 0
    validation: int = 0
    test: int = 0


@dataclass(frozen=True, kw_only=True)
class TokenizedRows:
    """Every row that has an answer, by its prompt's hash, and the tokens of those that were kept.

    >>> rows = TokenizedRows(folder=Path(), hashes=np.zeros(2, np.uint64), test_hashes=np.zeros(1, np.uint64),
    ...     kept=np.array([True, False, True]), report=DataReport(), content_hash="")
    >>> rows.stored(np.array([0, 1, 2])).tolist()
    [0, 1]
    """

    folder: Path
    hashes: Hashes
    """Of each row of the data."""
    test_hashes: Hashes | None
    """Of each row of its own test split, where it has one; these follow the others in index."""
    kept: Mask
    """Which rows of both have tokens in the folder."""
    report: DataReport
    content_hash: str

    def stored(self, rows: Indices) -> Indices:
        """Places in the folder of these rows, those without tokens left out."""
        places: Indices = np.cumsum(self.kept, dtype=np.int64) - 1
        return places[rows[self.kept[rows]]]


def tokenise(
    spec: DataSpec, source: Source, own_test: Source | None, tokenizer: TextTokenizer, progress: Progress | None
) -> TokenizedRows:
    """Tokenise both sources into the cache, or find them there.

    Raises:
        DataError: a row can't be read or used, or the cache can't be written.
    """
    content_hash = _content_hash(spec, source, own_test, tokenizer)
    key = _content_hash(replace(spec, validation_size=None, test_size=None), source, own_test, tokenizer)
    folder = cache_folder() / "data" / key
    if not (folder / SUMMARY).is_file():
        try:
            _make(folder, spec, source, own_test, tokenizer, progress or (lambda done, total: None))
        except OSError as error:
            raise DataError(_why_not_written(folder, error)) from error
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    hashes: Hashes = np.load(folder / HASHES)
    number: int = summary["rows"]
    return TokenizedRows(
        folder=folder,
        hashes=hashes[:number],
        test_hashes=hashes[number:] if own_test is not None else None,
        kept=np.load(folder / KEPT),
        report=DataReport(**summary["report"]),
        content_hash=content_hash,
    )


def _why_not_written(folder: Path, error: OSError) -> str:
    where = f"can't write the tokenised data to {folder}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}: no space left; free some disk, or set LOWREGRET_CACHE to a folder on another"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where} ({error.strerror}); check its permissions, or set LOWREGRET_CACHE to a folder of your own"
    return f"{where} ({error.strerror or error}); check the path, or set LOWREGRET_CACHE to another folder"


def _content_hash(spec: DataSpec, source: Source, own_test: Source | None, tokenizer: TextTokenizer) -> str:
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
    try:
        with ExampleWriter(temporary) as writer:
            work = _Tokenising(spec, tokenizer, writer, progress)
            work.add(source, spec.limit)
            number = len(work.hashes)
            if own_test is not None:
                work.add(own_test, None)
        np.save(temporary / HASHES, np.array(work.hashes, dtype=np.uint64))
        np.save(temporary / KEPT, np.array(work.kept, dtype=np.bool_))
        summary = {"rows": number, "report": asdict(work.report)}
        (temporary / SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
        _move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(made: Path, folder: Path) -> None:
    """Rename, unless another process was faster: then its entry stays, made from the same rows by the same rules."""
    try:
        os.rename(made, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not (folder / SUMMARY).is_file():  # torn by hand
            shutil.rmtree(folder)
            os.rename(made, folder)


def _chunk(rows: Iterator[Rendered]) -> list[Rendered]:
    """The next rows, as many as are tokenised at once."""
    chunk: list[Rendered] = []
    characters = 0
    for row in islice(rows, CHUNK):
        chunk.append(row)
        characters += len(row.text)
        if characters >= CHUNK_CHARACTERS:
            break
    return chunk


class _Tokenising:
    """Rows on their way to disk, and what became of them."""

    def __init__(self, spec: DataSpec, tokenizer: TextTokenizer, writer: ExampleWriter, progress: Progress) -> None:
        self.spec, self.tokenizer, self.writer, self.progress = spec, tokenizer, writer, progress
        self.report = DataReport()
        # Arrays, not lists: 9 bytes a row.
        self.hashes, self.kept = array("Q"), array("B")

    def add(self, source: Source, limit: int | None) -> None:
        """Tokenise the rows of one source."""
        rows = self._rendered(source, limit)
        while chunk := _chunk(rows):
            for encoded in self.tokenizer.encode_rendered(chunk):
                fitted = self._fit(encoded)
                self.kept.append(fitted is not None)
                if fitted is not None:
                    self.writer.add(fitted.tokens, fitted.completion)
                    self.report.kept += 1
            self.progress(self.report.read, limit)

    def _rendered(self, source: Source, limit: int | None) -> Iterator[Rendered]:
        """Rows that have something to learn from, as text; notes the hash of their prompts."""
        for number, conversation in self._conversations(source, limit):
            try:
                rendered = self.tokenizer.render(conversation, self.spec.loss_on)
            except DataError as error:
                raise DataError(f"{source.name}, row {number}: {error}") from error
            self.hashes.append(prompt_hash(conversation.prompt or conversation.messages[0].content, self.spec.seed))
            yield rendered

    def _conversations(self, source: Source, limit: int | None) -> Iterator[tuple[int, Conversation]]:
        """Row number and conversation of every row with an answer."""
        convert = None
        for number, row in enumerate(islice(source.rows(), limit), start=1):
            if convert is None:
                back = {actual: column for column, actual in self.spec.columns}
                columns = [back.get(str(column), str(column)) for column in row]
                name = detect(columns, source.name) if self.spec.format == "auto" else self.spec.format
                convert = converter(name, self.spec.columns, source.name)
            self.report.read += 1
            conversation = convert(number, row)
            if conversation.calls_tools:
                self.report.tool_calls += 1
            elif conversation.is_empty:
                self.report.empty += 1
            else:
                yield number, conversation

    def _fit(self, encoded: Encoded) -> Encoded | None:
        """The example within max_length, or None where it is dropped; counts either way."""
        self.report.turns_without_loss += encoded.turns_without_loss
        if len(encoded.tokens) > self.spec.max_length:
            if self.spec.overlong == "drop":
                self.report.overlong += 1
                return None
            self.report.truncated += 1
            cut = slice(self.spec.max_length)
            encoded = replace(encoded, tokens=encoded.tokens[cut], completion=encoded.completion[cut])
        if not encoded.completion[1:].any():
            self.report.masked += 1
            return None
        return encoded
