"""From a DataSpec to tokenised splits.

Rows are tokenised once, streamed to disk, and cached by the content of data, spec and tokenizer (`tokenise`). Splits
are chosen from every row that has an answer, before any is dropped for its length, so that a prompt stays on its side
whatever the length limit or tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lowregret.data.examples import ExampleStore, Indices
from lowregret.data.sources import open_source, open_test_source, parse_source
from lowregret.data.splits import DEFAULT_MOST, split
from lowregret.data.tokenise import DataReport, Progress, TokenizedRows, tokenise
from lowregret.data.tokenizer import TextTokenizer
from lowregret.errors import DataError
from lowregret.specs import DataFacts, DataSpec

__all__ = ["DataReport", "Progress", "TokenizedData", "load_data", "load_eval_data", "parse_source"]


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
    """Tokenise and split a data set, or take its tokens from the cache.

    Raises:
        DataError: the data can't be found or read, or a split is empty.
    """
    refuse_no_held_out(spec)
    source, own_test = open_source(spec), open_test_source(spec)
    rows = tokenise(spec, source, own_test, tokenizer, progress)
    _refuse_empty(source.name, rows)
    chosen = split(
        rows.hashes,
        rows.test_hashes,
        validation_size=spec.validation_size,
        test_size=spec.test_size,
        where=source.name,
    )
    by_name = {"train": chosen.train, "validation": chosen.validation, "test": chosen.test}
    stores = {name: ExampleStore(rows.folder, rows.stored(indices)) for name, indices in by_name.items()}
    for name, store in stores.items():
        if not len(store):
            raise DataError(
                f"{source.name}: no {name} example is left of {len(by_name[name])} (too long, or no token with loss); "
                "raise --max-length or hold out more"
            )
    train = stores["train"]
    facts = DataFacts(
        num_examples=len(train),
        num_tokens=train.num_tokens,
        num_completion_tokens=train.num_completion_tokens,
        longest=int(train.lengths.max()),
    )
    counts = {name: len(store) for name, store in stores.items()}
    report = replace(rows.report, test_overlaps=chosen.overlaps, **counts)
    return TokenizedData(**stores, facts=facts, report=report, content_hash=rows.content_hash)


def load_eval_data(source: str, like: DataSpec, tokenizer: TextTokenizer) -> ExampleStore:
    """Further held-out data, tokenised as `like` says: at most its test size (or 512) examples, chosen by hash.

    The data set's own test split is taken where it has one.

    Args:
        source: as `DataSpec.source`; a hub id may carry config and split (`openai/gsm8k:main:test`).

    Raises:
        DataError: the data can't be found or read, or nothing is left of it.
    """
    named = parse_source(source)
    spec = replace(
        like,
        source=named["source"],
        config=named.get("config"),
        split=named.get("split", "train"),
        test_split=None,
        test_source=None,
        format="auto",
        columns=(),
    )
    chosen = open_test_source(spec) if "split" not in named else None
    opened = chosen or open_source(spec)
    rows = tokenise(spec, opened, None, tokenizer, None)
    _refuse_empty(opened.name, rows)
    kept: Indices = np.flatnonzero(rows.kept).astype(np.int64)
    order = np.argsort(rows.hashes[kept], kind="stable")
    size = DEFAULT_MOST if like.test_size is None else like.test_size
    return ExampleStore(rows.folder, rows.stored(np.sort(kept[order[:size]])))


def refuse_no_held_out(spec: DataSpec) -> None:
    """Settings are chosen on one held-out split and every claim is made on the other: a run needs both."""
    for name, size in (("validation_size", spec.validation_size), ("test_size", spec.test_size)):
        if size is not None and size < 1:
            flag = "--" + name.replace("_", "-")
            raise DataError(
                f"data.{name} is {size}, and {spec.source} would be measured on nothing; "
                f"give at least {flag} 1, or leave {flag} out for 5 %"
            )


def _refuse_empty(where: str, rows: TokenizedRows) -> None:
    report = rows.report
    if rows.kept[: len(rows.hashes)].any():
        return
    reasons = {
        "without an answer": report.empty,
        "that call tools": report.tool_calls,
        "too long": report.overlong,
        "with no token to learn": report.masked,
    }
    counts = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number) or "it has no rows"
    raise DataError(
        f"{where}: nothing is left of {report.read} rows ({counts}); check the format, the columns and --max-length"
    )
