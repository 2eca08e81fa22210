"""Where rows come from: a hub, a local file, or a generator. Rows are streamed; only JSON arrays are held whole."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowregret.data import generated
from lowregret.errors import DataError
from lowregret.folders import file_digest
from lowregret.hub import hub_trouble
from lowregret.specs import DataSpec

Row = Mapping[str, Any]
CSV_MISSING = ("nan", "NaN")
"""What a table's missing number becomes when it is written as CSV; an empty cell is empty as it is."""
FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows of one split, with a name for messages and a hash of the content.

    >>> Source(name="d.jsonl", content_hash="0", path=Path("d.jsonl"), spec=DataSpec(source="d.jsonl"), split=None).name
    'd.jsonl'
    """

    name: str
    content_hash: str
    path: Path | None
    """The file, where it is one."""
    spec: DataSpec
    split: str | None
    """Split of a hub data set."""

    def rows(self) -> Iterator[Row]:
        """Every row, in order.

        Raises:
            DataError: a row can't be read.
        """
        if self.path is not None:
            return _file_rows(self.path)
        if generated.is_generated(self.spec.source):
            return generated.rows(self.spec.source, size=self.spec.limit, seed=self.spec.seed)
        return iter(_hub_split(self.spec, self.split or self.spec.split))

    def problems(self) -> Iterator[tuple[Row, Row]]:
        """Every row with what a scorer may want to see of it: the row itself, or the task and item of reasoning-gym.

        Raises:
            DataError: a row can't be read.
        """
        if self.path is None and self.spec.source.startswith(generated.GYM):
            return generated.gym_problems(self.spec.source, size=self.spec.limit, seed=self.spec.seed)
        return ((row, row) for row in self.rows())


def parse_source(text: str) -> dict[str, str]:
    """`owner/name:config:split` as keyword arguments of a DataSpec; files and generated sets are left as they are.

    >>> parse_source("openai/gsm8k:main:test")
    {'source': 'openai/gsm8k', 'config': 'main', 'split': 'test'}
    >>> parse_source("reasoning-gym:chain_sum")
    {'source': 'reasoning-gym:chain_sum'}

    Raises:
        DataError: more parts than these.
    """
    if generated.is_generated(text) or _is_file(Path(text)):
        return {"source": text}
    names, parts = ("source", "config", "split"), text.split(":")
    if len(parts) > len(names):
        raise DataError(f"data {text} has {len(parts)} parts; write it as owner/name:config:split")
    return {name: part for name, part in zip(names, parts, strict=False) if part}


def open_source(spec: DataSpec) -> Source:
    """The training rows' source.

    Raises:
        DataError: no such file, hub data set or generator.
    """
    path = Path(spec.source).expanduser()
    if generated.is_generated(spec.source) or _is_file(path):
        _refuse_hub_settings(spec)
    if generated.is_generated(spec.source):
        size = generated.check(spec.source, spec.limit)
        digest = hashlib.sha256(f"{spec.source}/{size}/{spec.seed}/{generated.VERSION}".encode()).hexdigest()
        return Source(name=spec.source, content_hash=digest, path=None, spec=spec, split=None)
    if _is_file(path):
        return open_file(path, spec)
    if spec.source.count("/") > 1 or spec.source.startswith((".", "/", "~")):
        raise DataError(f"data file {spec.source} does not exist; check the path")
    split = _hub_split(spec, spec.split)
    return Source(
        name=f"{spec.source} ({spec.split})", content_hash=split._fingerprint, path=None, spec=spec, split=spec.split
    )


def _refuse_hub_settings(spec: DataSpec) -> None:
    """What names a part of a hub data set says nothing about a file or a generated set."""
    for field, value, default in (("config", spec.config, None), ("split", spec.split, DataSpec.split)):
        if value != default:
            raise DataError(f"data.{field} is {value!r}, and {spec.source} is no hub data set; leave it out")


def open_test_source(spec: DataSpec) -> Source | None:
    """The data set's own test split: `test_source`, `test_split`, or a hub data set's split named `test`."""
    if spec.test_source is not None:
        if spec.test_split is not None:
            raise DataError(f"test_split {spec.test_split!r} stands beside test_source; leave one of them out")
        return open_file(Path(spec.test_source).expanduser(), spec)
    path = Path(spec.source).expanduser()
    if generated.is_generated(spec.source) or _is_file(path):
        if spec.test_split is not None:
            raise DataError(
                f"test_split {spec.test_split!r}: {spec.source} is no hub data set; give a file with test_source"
            )
        return None
    name = spec.test_split or ("test" if "test" in _hub_split_names(spec) and spec.split != "test" else None)
    if name is None:
        return None
    split = _hub_split(spec, name)
    return Source(name=f"{spec.source} ({name})", content_hash=split._fingerprint, path=None, spec=spec, split=name)


def open_file(path: Path, spec: DataSpec) -> Source:
    """A local file as a source.

    Raises:
        DataError: it does not exist, or is of another kind.
    """
    if path.is_dir():
        raise DataError(f"data {path} is a folder; name one file in it: {', '.join(FILE_KINDS)}")
    if not path.is_file():
        raise DataError(f"data file {path} does not exist; check the path")
    if path.suffix.lower() not in FILE_KINDS:
        raise DataError(f"data file {path} is of an unknown kind; use one of {', '.join(FILE_KINDS)}")
    try:
        digest = file_digest(path)
    except OSError as error:
        raise DataError(f"data file {path} can't be read ({error.strerror}); check its permissions") from error
    return Source(name=path.name, content_hash=digest, path=path, spec=spec, split=None)


def _is_file(path: Path) -> bool:
    return path.suffix.lower() in FILE_KINDS or path.expanduser().exists()


def _file_rows(path: Path) -> Iterator[Row]:
    """Rows of a file by its kind.

    Raises:
        DataError: the file can't be read, is no UTF-8, or not of its kind.
    """
    try:
        yield from _READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} can't be read ({error}); check the file") from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number} is not JSON ({error.msg}); mend or remove that line") from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number} holds a {type(row).__name__}; "
                    "each line must be an object (name the file .json if it is one array)"
                )
            yield row


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno} is not JSON ({error.msg}); "
            "mend it, or name it .jsonl if it has an object a line"
        ) from error
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise DataError(f"{path} must hold a list of objects, or an object with such a list under 'data'")
    return iter(value)


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle)
        try:
            for row in reader:
                if None in row:
                    raise DataError(
                        f"{path}, line {reader.line_num} has more cells than the header; quote cells that hold commas"
                    )
                yield {column: None if cell in CSV_MISSING else cell for column, cell in row.items()}
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}; mend it, or save it as JSONL") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        # By itself the library fetches the file ahead and gives 65,536 rows at once: gigabytes where rows are long.
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(batch_size=512):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is no readable Parquet file ({error}); write it again") from error


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _hub_split(spec: DataSpec, split: str) -> Any:
    import datasets

    with _hub_errors(spec):
        return datasets.load_dataset(spec.source, spec.config, split=split)


def _hub_split_names(spec: DataSpec) -> list[str]:
    import datasets

    with _hub_errors(spec):
        return list(datasets.get_dataset_split_names(spec.source, spec.config))


@contextmanager
def _hub_errors(spec: DataSpec) -> Iterator[None]:
    """Turns what the hub's libraries raise into one line that says what to do."""
    name = spec.source
    try:
        yield
    except Exception as error:
        if isinstance(error, RuntimeError) and "script" in str(error):
            raise DataError(
                f"data set {name} needs code from the hub, which is never run; convert it to files"
            ) from error
        if type(error) is ValueError:
            raise DataError(f"data set {name}: {str(error).splitlines()[0]}; set --config and --split") from error
        trouble = hub_trouble(error, what=f"data set {name}", instead="a local file")
        if trouble is not None:
            raise DataError(trouble) from error
        raise
