"""Compiled code is run from where nobody else can write, and made again where a crash left its file empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowregret.kernels import build
from tiny import needs_compiler

pytestmark = needs_compiler


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty; and the pieces as if they had not been loaded yet."""
    monkeypatch.setenv("LOWREGRET_CACHE", str(tmp_path))
    return tmp_path


def test_a_file_that_a_crash_left_empty_is_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.library.__wrapped__() is not None
    (whole,) = (cache / "kernels").glob("*.so")
    # Another place: a library that this process has loaded is not read again.
    monkeypatch.setenv("LOWREGRET_CACHE", str(cache / "other"))
    (cache / "other" / "kernels").mkdir(mode=0o700, parents=True)
    cut = cache / "other" / "kernels" / whole.name
    cut.touch(0o700)
    assert build.library.__wrapped__() is not None
    assert cut.stat().st_size == whole.stat().st_size


def test_what_others_may_write_is_not_run(cache: Path) -> None:
    assert build.library.__wrapped__() is not None
    (cache / "kernels").chmod(0o770)
    with pytest.warns(UserWarning, match="kernels belongs to somebody else or others may write to it; remove it"):
        assert build.library.__wrapped__() is None
