"""A cached hub folder counts as whole only with all its weights; a revision is a hub model's; a GGUF is read once."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lowregret.errors import ModelError
from lowregret.models.locate import has_all_weights, locate_model
from lowregret.specs import ModelSpec


def test_a_folder_with_a_plan_s_files_alone_is_not_whole(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    assert not has_all_weights(tmp_path)


def test_one_file_of_weights_is_whole(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert has_all_weights(tmp_path)


def test_a_missing_shard_is_found_by_the_index(tmp_path: Path):
    shards = {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert not has_all_weights(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"")
    assert has_all_weights(tmp_path)


def test_a_folder_has_no_revisions(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="leave --revision out"):
        locate_model(ModelSpec(source=str(tmp_path), revision="main"))
    with pytest.raises(ModelError, match="leave --revision out"):
        locate_model(ModelSpec(source="smollm2-135m", revision="main"))


def test_a_gguf_that_was_dequantised_is_read_for_its_digest_once(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    os.utime(file, (0, 0))
    digest = hashlib.sha256(b"GGUF").hexdigest()
    folder = own_cache / "models" / f"tiny-{digest[:12]}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    read: list[str] = []
    digest_of = hashlib.file_digest

    def counted(handle: Any, name: str) -> object:
        read.append(handle.name)
        return digest_of(handle, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    assert [locate_model(ModelSpec(source=str(file))).path for _ in range(3)] == [folder] * 3
    assert read == [str(file)]
