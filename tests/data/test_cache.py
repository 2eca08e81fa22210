"""The cache of tokens and of digests: made once, whole or not there, whoever else makes it too, and whatever the disk
says is said as it is."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from data.rows_on_disk import jsonl, questions
from data.tokenizers_on_disk import text_tokenizer
from lowregret.data import tokenise
from lowregret.data.examples import ExampleWriter
from lowregret.data.load import load_data
from lowregret.data.sources import open_source
from lowregret.data.tokenizer import TextTokenizer
from lowregret.errors import DataError
from lowregret.folders import file_digest
from lowregret.specs import DataSpec


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return text_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_who_loses_the_race_for_an_entry_uses_the_winner_s(
    tmp_path: Path, tokenizer: TextTokenizer, own_cache: Path
) -> None:
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", questions(20)))
    winners: list[tuple[str, int]] = []

    def another_is_faster(_done: int, _total: int | None) -> None:
        winner = load_data(spec, tokenizer)
        winners.append((winner.train.content_hash, entry().stat().st_ino))

    def entry() -> Path:
        (folder,) = [path for path in (own_cache / "data").iterdir() if not path.name.startswith(".")]
        return folder

    loser = load_data(spec, tokenizer, progress=another_is_faster)
    assert winners == [(loser.train.content_hash, entry().stat().st_ino)]
    assert [path.name for path in (own_cache / "data").iterdir()] == [entry().name]


def test_an_entry_that_was_torn_by_hand_is_made_again(
    tmp_path: Path, tokenizer: TextTokenizer, own_cache: Path
) -> None:
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", questions(20)))
    first = load_data(spec, tokenizer).train.content_hash
    (entry,) = (own_cache / "data").iterdir()
    (entry / tokenise.SUMMARY).unlink()
    assert load_data(spec, tokenizer).train.content_hash == first
    assert (entry / tokenise.SUMMARY).is_file()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left; free some disk, or set LOWREGRET_CACHE to a folder on another"),
        (errno.EDQUOT, "no space left; free some disk"),
        (errno.EACCES, r"\(Permission denied\); check its permissions, or set LOWREGRET_CACHE"),
        (errno.EROFS, r"\(Read-only file system\); check its permissions"),
        (errno.EIO, r"\(Input/output error\); check the path, or set LOWREGRET_CACHE to another folder"),
    ],
)
def test_what_the_disk_says_is_said_as_it_is(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(ExampleWriter, "add", fail)
    with pytest.raises(DataError, match=words) as caught:
        load_data(DataSpec(source=jsonl(tmp_path / "d.jsonl", questions(20))), tokenizer)
    assert ("free some disk" in str(caught.value)) == (code in (errno.ENOSPC, errno.EDQUOT))


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A file that was written an hour ago."""
    file = tmp_path / "old.jsonl"
    file.write_text('{"question": "q", "answer": "a"}\n')
    hour_ago = file.stat().st_mtime - 3600
    os.utime(file, (hour_ago, hour_ago))
    return file


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes are read for their digest, as they are read."""
    names: list[str] = []
    digest_of = hashlib.file_digest

    def counted(handle: Any, name: str) -> object:
        names.append(Path(handle.name).name)
        return digest_of(handle, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return names


def test_a_data_file_is_read_for_its_digest_once(old_file: Path, reads: list[str]) -> None:
    spec = DataSpec(source=str(old_file))
    hashes = {open_source(spec).content_hash for _ in range(3)}
    assert hashes == {hashlib.sha256(old_file.read_bytes()).hexdigest()}
    assert reads == ["old.jsonl"]


def test_a_changed_file_is_read_again_though_size_and_time_are_the_same(old_file: Path, reads: list[str]) -> None:
    before, state = file_digest(old_file), old_file.stat()
    old_file.write_text(old_file.read_text().replace("q", "r").replace("ruestion", "question"))
    os.utime(old_file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert old_file.stat().st_size == state.st_size
    assert file_digest(old_file) == hashlib.sha256(old_file.read_bytes()).hexdigest() != before
    assert len(reads) == 2


def test_the_digest_of_a_file_that_may_still_change_is_not_kept(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "new").write_text("a")
    assert file_digest(tmp_path / "new") == file_digest(tmp_path / "new") == hashlib.sha256(b"a").hexdigest()
    assert reads == ["new", "new"]


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_kept_digest_that_is_none_is_made_again(
    old_file: Path, own_cache: Path, reads: list[str], content: str
) -> None:
    digest = file_digest(old_file)
    (place,) = (own_cache / "digests").iterdir()
    place.write_text(content)
    assert [file_digest(old_file), file_digest(old_file)] == [digest, digest]
    assert len(reads) == 2


def test_a_cache_that_cant_be_written_costs_a_second_reading(
    tmp_path: Path, old_file: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWREGRET_CACHE", str(old_file))
    assert file_digest(old_file) == file_digest(old_file) == hashlib.sha256(old_file.read_bytes()).hexdigest()
    assert len(reads) == 2


def test_long_rows_are_tokenised_few_at_a_time(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": f"{k} " + "long " * 20, "answer": "a"} for k in range(30)]
    spec = DataSpec(source=jsonl(tmp_path / "d.jsonl", rows))
    whole = load_data(spec, tokenizer).train.content_hash
    done: list[int] = []
    monkeypatch.setattr(tokenise, "CHUNK_CHARACTERS", 500)
    again = DataSpec(source=jsonl(tmp_path / "again.jsonl", [*rows, {"question": "q", "answer": ""}]))
    shorter = load_data(again, tokenizer, progress=lambda read, _: done.append(read))
    assert shorter.train.content_hash == whole
    assert done == [*range(4, 29, 4), 31]
