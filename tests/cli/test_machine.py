"""The machine's facts, found without torch, are those that torch would give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowregret.cli import machine
from lowregret.cli.machine import confirm_device, device_facts, num_threads
from lowregret.errors import SpecError


def test_the_cpu_has_memory_and_threads():
    facts = device_facts("cpu")
    assert facts.kind == "cpu"
    assert 1 << 26 < facts.memory_bytes < 1 << 50
    assert facts.threads == num_threads()
    assert confirm_device("cpu", facts) == facts


def test_threads_are_what_torch_would_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "nonsense")
    assert num_threads() >= 1


@pytest.mark.parametrize("device", ["tpu", "gpu:0", ""])
def test_an_unknown_device_is_refused(device: str):
    with pytest.raises(SpecError, match="is not known; give cpu, cuda, cuda:1 or mps"):
        device_facts(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA device here")
def test_an_absent_device_is_refused():
    with pytest.raises(SpecError, match="--device cuda: no such NVIDIA device"):
        device_facts("cuda")


def test_a_container_allows_its_limit_less_what_is_taken(tmp_path: Path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert machine._container_memory(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._container_memory(tmp_path) > 1 << 50
