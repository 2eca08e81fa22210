"""A tiny model folder and a data file that a command line can name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_folder import tiny_model_folder, write_questions


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums that a few steps make likelier."""
    return write_questions(tmp_path_factory.mktemp("data") / "sums.jsonl", 120)


@pytest.fixture(scope="session")
def settings(model_folder: Path, data_file: Path) -> tuple[str, ...]:
    """Flags of a run of seconds."""
    return (
        *("--model", str(model_folder), "--data", str(data_file), "--device", "cpu", "--dtype", "fp32"),
        *("--threads", "1", "--batch-size", "4", "--validation-size", "4", "--test-size", "8", "--steps", "3"),
    )
