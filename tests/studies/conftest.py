"""A tiny base and data for the runs that are diagnosed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowregret.specs import DataSpec
from tiny_folder import tiny_model_folder, write_questions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("base") / "model", tied=False)


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    """Additions: 100 to train on, 10 for each held-out split."""
    file = write_questions(tmp_path_factory.mktemp("data") / "sums.jsonl", 120)
    return DataSpec(source=str(file), validation_size=10, test_size=10)
