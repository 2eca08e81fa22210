"""What is refused before a row is read, and why; own test splits are capped."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError

from lowregret.data.sources import open_source, open_test_source, parse_source
from lowregret.data.splits import split
from lowregret.errors import DataError
from lowregret.specs import DataSpec


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "a", "answer": "b"}) + "\n")
    return DataSpec(source=str(file))


def test_what_names_a_part_of_a_hub_data_set_is_refused_beside_a_file(spec: DataSpec):
    with pytest.raises(DataError, match=r"data.config is 'main', and .* is no hub data set; leave it out"):
        open_source(replace(spec, config="main"))
    with pytest.raises(DataError, match=r"data.split is 'test'"):
        open_source(replace(spec, split="test"))
    with pytest.raises(DataError, match=r"data.config is 'main', and facts is no hub data set"):
        open_source(DataSpec(source="facts", config="main"))
    named: dict[str, Any] = {**parse_source(f"{spec.source}::validation")}
    with pytest.raises(DataError, match=r"data.split is 'validation'"):
        open_source(DataSpec(**named))
    with pytest.raises(DataError, match="stands beside test_source"):
        open_test_source(replace(spec, test_source=spec.source, test_split="test"))


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("gated", "is gated; accept its terms"),
        ("full", "no space left to store it"),
        ("offline", "the hub can't be reached"),
    ],
)
def test_what_a_hub_s_library_raises_becomes_its_own_line(raised: str, said: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        if raised == "gated":
            # The hub's own error wants a response of its web client; only its type matters here.
            raise DatasetNotFoundError("doesn't exist") from GatedRepoError.__new__(GatedRepoError)
        raise OSError(errno.ENOSPC if raised == "full" else errno.ECONNREFUSED, "failed")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=said):
        open_source(DataSpec(source="owner/name"))


def test_parquet_of_long_rows_is_read_a_part_at_a_time(tmp_path: Path):
    file, rng = tmp_path / "rows.parquet", np.random.default_rng(0)
    # 4096 rows that do not compress, 32 MB: one row group, as most writers make.
    column = pyarrow.array([rng.bytes(4000).hex() for _ in range(4096)])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), file, use_dictionary=False)
    del column
    before = pyarrow.total_allocated_bytes()
    rows = open_source(DataSpec(source=str(file))).rows()
    assert len(next(rows)["text"]) == 8000
    held = pyarrow.total_allocated_bytes() - before
    assert held < 16 << 20


def test_parquet_of_several_parts_is_read_in_order(tmp_path: Path):
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": [str(k) for k in range(2000)]}), file)
    rows = open_source(DataSpec(source=str(file))).rows()
    assert [row["question"] for row in rows] == [str(k) for k in range(2000)]


def test_an_own_test_split_is_capped_and_the_same_each_time():
    hashes, own = np.arange(100, dtype=np.uint64), np.arange(1000, 3000, dtype=np.uint64)[::-1].copy()
    found = [split(hashes, own, validation_size=None, test_size=None, where="d").test for _ in range(2)]
    assert len(found[0]) == 512
    assert found[0].tolist() == found[1].tolist()
    assert split(hashes, own, validation_size=None, test_size=2000, where="d").test.size == 2000
