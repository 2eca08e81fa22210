"""Contenders of a benchmark: each turn in a process of its own, all from one adapter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RANK, ALPHA = 16, 32.0


def take_turn(command: Sequence[str], name: str, *, threads: int) -> dict[str, Any]:
    """Run a contender; it prints its result as a line of JSON behind the word RESULT.

    Raises:
        SystemExit: it printed none.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise SystemExit(f"{name} failed:\n{done.stdout}\n{done.stderr}")


def write_start(job: dict[str, Any]) -> None:
    """The untrained adapter that every contender starts from."""
    from lowregret.adapters.peft_format import write_adapter

    _, bank = bank_on(job, "fp32")
    write_adapter(bank, "r16", Path(job["adapter"]), base_model=job["model"])


def bank_on(job: dict[str, Any], dtype: str) -> tuple[Any, Any]:
    """The base with a fresh slot; the same A for the same seed in every dtype."""
    import torch

    from lowregret.models.load import DTYPES, load_module, with_bank
    from lowregret.models.locate import ModelFolder
    from lowregret.specs import AdapterSpec

    folder = ModelFolder(path=Path(job["model"]), name="benchmark", content_hash="")
    model, bank = with_bank(load_module(folder, dtype=DTYPES[dtype], device=torch.device("cpu")))
    bank.join("r16", AdapterSpec(rank=RANK, alpha=ALPHA))
    return model, bank
