"""Compiled code is run from where nobody else can write, and made again where a crash left its file empty."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from lowregret.kernels import build
from tiny import needs_compiler

pytestmark = needs_compiler

PROCESSORS = ("x86-64", "haswell", "skylake-avx512", "cooperlake", "sapphirerapids")
"""Without AVX2, with it, with AVX-512, with its bf16 and with AMX: each takes other lines of the sources."""


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


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("g++") is None, reason="names gcc's x86 processors")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_sources_are_sound_for_every_kind_of_processor(processor: str) -> None:
    """Compiled for the one at hand alone, a mistake in another's lines would only cost that one its speed, silently."""
    flags = [flag for flag in build.FLAGS if flag not in ("-O3", "-march=native", "-shared")]
    command = ["g++", "-O0", f"-march={processor}", "-fsyntax-only", *flags, *map(str, build.SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
