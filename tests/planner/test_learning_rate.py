"""The learning-rate estimate: its directions, its intervals, and the script that fits it."""

from __future__ import annotations

import csv
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowregret.planner import learning_rate_coefficients as fitted
from lowregret.planner.learning_rate import (
    alpha_factor,
    full_rate,
    lora_rate,
    run_length_factor,
    thinking_machines_law,
)

SCRIPT = Path(__file__).parents[2] / "scripts/fit_learning_rate.py"
FAMILIES = ("llama", "qwen3", "qwen3_5_moe", "deepseek_v3", "gpt_oss", "gemma2", "phi", "nobody_s")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fit_learning_rate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fit_learning_rate"] = module
    spec.loader.exec_module(module)
    return module


def write_sweep(path: Path, exponent: float) -> None:
    """Quadratic curves whose best rate follows a known law in rank and width."""
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["model", "model_type", "hidden_size", "learning_rate", "rank", "test_nll"])
        for width in (2048, 3072, 4096, 5120, 8192):
            for rank in (1, 4, 16, 64):
                best = math.log(5e-4) + exponent * math.log(rank / 16)
                for rate in (4e-5, 1e-4, 3e-4, 1e-3, 3e-3):
                    loss = 0.5 + 0.01 * (math.log(rate) - best) ** 2
                    writer.writerow([f"owner/m{width}", "qwen3", width, rate, rank, loss])


@pytest.mark.parametrize("exponent", [0.18, 0.3])
def test_the_fit_finds_a_planted_law(script: ModuleType, exponent: float, tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep.csv", exponent)
    cells = script.read_cells(tmp_path / "sweep.csv")
    assert len(cells) == 20
    coefficients = script.fit(cells)
    assert coefficients["rank"] == pytest.approx(exponent, abs=0.02)
    rates = script.left_out(cells)
    assert max(cell.regret(rates[index]) for index, cell in enumerate(cells)) < 0.2
    flat = [cell.regret(3e-4) for cell in cells]
    assert max(cell.regret(rates[index]) for index, cell in enumerate(cells)) < max(flat) / 2


def test_the_committed_coefficients_are_those_that_the_script_fits(script: ModuleType) -> None:
    assert tuple(fitted.COEFFICIENTS) == script.NAMES
    assert 0.1 < fitted.COEFFICIENTS["rank"] < 0.3
    assert 0.5 < fitted.CONSTANT_OVER_LINEAR < 1


@given(
    model_type=st.sampled_from(FAMILIES),
    width=st.integers(16, 20_000),
    rank=st.integers(1, 512),
    steps=st.integers(1, 10**6),
    alpha=st.floats(1, 512),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    batch=st.integers(1, 1024),
    task=st.sampled_from(["sft", "rl"]),
)
def test_any_question_has_an_answer_inside_its_interval(
    model_type: str, width: int, rank: int, steps: int, alpha: float, schedule: str, batch: int, task: str
) -> None:
    lora = lora_rate(
        model_type,
        width,
        rank=rank,
        steps=steps,
        alpha=alpha,
        schedule=schedule,  # pyright: ignore[reportArgumentType]
        batch_size=batch,
        task=task,
    )
    full = full_rate(model_type, width, steps=steps, batch_size=batch, task=task)
    for rate in (lora, full):
        assert 0 < rate.low < rate.value < rate.high < math.inf
        assert rate.reason
    assert full.value < lora_rate(model_type, width, rank=32, steps=10_000, task=task).value


@given(model_type=st.sampled_from(FAMILIES), rank=st.integers(1, 256), steps=st.integers(1, 5000))
def test_directions(model_type: str, rank: int, steps: int) -> None:
    def value(**changes: object) -> float:
        settings = {"rank": rank, "steps": steps, **changes}
        return lora_rate(model_type, 4096, **settings).value  # pyright: ignore[reportArgumentType]

    assert value(rank=2 * rank) > value()
    assert value(steps=2 * steps) <= value()
    assert value(schedule="linear") > value()
    assert value(alpha=64.0) < value()
    assert value(alpha=16.0) > value()


def test_numbers_of_the_law_and_of_the_replications() -> None:
    law = thinking_machines_law("llama", 4096, lora=True)
    assert law == pytest.approx(2.86e-4, rel=0.01)
    assert thinking_machines_law("llama", 4096, lora=False) == pytest.approx(2.86e-5, rel=0.01)
    assert thinking_machines_law("gemma2", 4096, lora=True) is None
    # Qwen3-4B replication: FullFT 2.5e-5, rank 16 2.2e-4; Qwen3-1.7B by RL: 7e-5 at any rank, FullFT 1.75e-5.
    assert lora_rate("qwen3", 2560, rank=16, steps=1000).value == pytest.approx(2.2e-4, rel=0.6)
    assert full_rate("qwen3", 2560, steps=1000).value == pytest.approx(2.5e-5, rel=0.6)
    rl = {rank: lora_rate("qwen3", 2048, rank=rank, steps=50, task="rl").value for rank in (1, 16, 256)}
    assert set(rl.values()) == {7e-5}
    assert 3 <= rl[16] / full_rate("qwen3", 2048, steps=50, task="rl").value <= 6


def test_short_runs_want_up_to_half_as_much_again() -> None:
    assert run_length_factor(780) == run_length_factor(10_000) == 1.0
    assert run_length_factor(100) == pytest.approx(1.36, abs=0.01)
    assert run_length_factor(1) == 1.5


def test_alpha_goes_through_the_invariance() -> None:
    assert alpha_factor(64.0, 10) == 0.5
    assert alpha_factor(64.0, 10**5) == pytest.approx(2**-0.5)
    assert alpha_factor(16.0, 300) * alpha_factor(64.0, 300) == pytest.approx(1.0)


def test_what_is_not_known_widens_the_interval() -> None:
    def width(model_type: str, hidden: int, **rest: object) -> float:
        rate = lora_rate(model_type, hidden, **{"rank": 16, "steps": 780, **rest})  # pyright: ignore[reportArgumentType]
        return rate.high / rate.low

    known = width("llama", 4096, schedule="linear")
    assert width("martian", 4096, schedule="linear") > known
    assert width("llama", 256, schedule="linear") > known
    assert width("llama", 4096) > known
    assert width("llama", 4096, schedule="linear", batch_size=8) > known
