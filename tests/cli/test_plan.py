"""`lowregret plan` says what a run would do, and never loads torch."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowregret.cli.main import run
from lowregret.cli.prepare import read_spec
from lowregret.specs import ResolvedPlan
from lowregret.specs.codec import read_toml


def test_the_plan_is_tables_or_one_json_object(settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    assert run(["plan", *settings, "--rank", "1,4"]) == 0
    assert "What trains" in capsys.readouterr().out
    assert run(["plan", *settings, "--rank", "1,4", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [slot["name"] for slot in plan["slots"]] == ["r1", "r4"]
    assert plan["steps"] == 3
    assert all(derived["reason"] for derived in plan["derived"])


def test_a_number_of_tokens_stands_for_data(model_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["plan", "--model", str(model_folder), "--tokens", "100000", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["approximate"] is True
    assert plan["completion_tokens_per_slot"] == pytest.approx(100_000, rel=0.05)


def test_what_does_not_fit_is_an_error_of_one_line(model_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["plan", "--model", str(model_folder), "--tokens", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: tokens: 0 must be at least 1")


def test_rewards_bring_fewer_bits_than_completions(settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    rewards = ["--task", "rl", "--group", "8", "--pass-rate", "0.5", "--json"]
    assert run(["plan", *settings, *rewards]) == 0
    plan = json.loads(capsys.readouterr().out)
    samples = 3 * 4 * 8
    assert (plan["data_units"], plan["data_bits"], plan["suggested_rank"]) == (samples, samples, 1)
    assert plan["capacity_status"] == "OK"
    assert run(["plan", *settings, *rewards, "--pass-rate", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["data_bits"] == 0


def test_a_plan_of_rl_is_a_spec_that_rl_runs_and_counts_what_is_drawn(
    settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "plan.toml"
    flags = ["--task", "rl", "--reward", "exact", "--group", "4", "--max-new-tokens", "2", "--rank", "1"]
    assert run(["plan", *settings, *flags, "--json", "--out", str(file)]) == 0
    printed = capsys.readouterr()
    assert f"run it with: lowregret rl {file}" in printed.err
    plan = json.loads(printed.out)
    assert plan["completion_tokens_per_slot"] == 3 * 4 * 4 * 2
    assert run(["rl", str(file), "--out", str(tmp_path / "run")]) == 0
    assert read_toml(ResolvedPlan, tmp_path / "run" / "plan.toml").spec == read_spec(file)


def test_another_tool_s_configuration_takes_the_place_of_the_plan(
    settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    assert run(["plan", *settings, "--rank", "4", "--emit", "trl"]) == 0
    text = capsys.readouterr().out
    compile(text, "trl", "exec")
    assert "r=4" in text
    assert run(["plan", *settings, "--rank", "1,4", "--emit", "trl"]) == 2
    assert "one adapter a file, the plan has r1, r4" in capsys.readouterr().err


def test_a_written_plan_is_a_spec_that_runs(settings: tuple[str, ...], tmp_path: Path):
    file = tmp_path / "plan.toml"
    assert run(["plan", *settings, "--rank", "4", "--out", str(file)]) == 0
    assert read_toml(ResolvedPlan, file).spec == read_spec(file)
    assert run(["sft", str(file), "--out", str(tmp_path / "run")]) == 0
    assert read_toml(ResolvedPlan, tmp_path / "run" / "plan.toml").spec == read_spec(file)


def test_a_stated_memory_caps_the_rank_and_the_reason_says_so(model_folder: Path, capsys: pytest.CaptureFixture[str]):
    few = [
        "plan",
        "--model",
        str(model_folder),
        "--tokens",
        "100000000",
        "--device",
        "cpu",
        "--dtype",
        "fp32",
        "--json",
    ]
    assert run(few) == 0
    free = json.loads(capsys.readouterr().out)
    needed = free["memory_bytes"]["total"] - free["memory_bytes"]["adapters"]
    assert run([*few, "--memory", f"{needed // 1024}KiB"]) == 0
    tight = json.loads(capsys.readouterr().out)
    reasons = [derived["reason"] for derived in tight["derived"] if derived["name"].endswith("weights.rank")]
    assert len(reasons) == 1
    assert "memory allows" in reasons[0]
    assert tight["largest_rank_that_fits"] < free["largest_rank_that_fits"]


def test_a_stated_speed_predicts_the_time(settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    assert run(["plan", *settings, "--rank", "4", "--tflops", "0.5", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["seconds"] == pytest.approx(plan["flops_of_run"] / 0.25e12)


def test_measured_bits_come_with_an_interval_and_a_time(settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    assert run(["plan", *settings, "--rank", "4", "--measure", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    low, high = plan["data_bits_interval"]
    assert low < plan["data_bits"] < high
    # A random model knows nothing: its loss is about that of a uniform guess over its vocabulary.
    guess = math.log2(json.loads((Path(settings[1]) / "config.json").read_text())["vocab_size"])
    assert plan["data_bits"] == pytest.approx(plan["data_tokens"] * guess, rel=0.1)
    assert plan["seconds"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--group", "8"), "--group: is for --task rl"),
        (("--task", "rl", "--group", "1"), "rl.group: in a group of 1 the reward is its own mean"),
        (("--kl", "0.1"), "--kl: is for --task rl"),
        (("--pass-rate", "0.5"), "--pass-rate: is for --task rl"),
        (("--task", "rl", "--pass-rate", "1.5"), "pass_rate: 1.5 is no share"),
        (("--task", "rl", "--measure"), "--measure: the bits of RL are in its rewards"),
        (("--measure", "--tflops", "1"), "--tflops: --measure times this machine"),
        (("--tflops", "0"), "--tflops: 0 must be positive"),
        (("--emit", "trl", "--json"), "--emit: prints a configuration"),
        (("--memory", "much"), "--memory: 'much' is no size"),
    ],
)
def test_flags_that_nothing_would_use_are_refused(
    settings: tuple[str, ...], flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
):
    assert run(["plan", *settings, "--rank", "4", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_planning_loads_no_torch(settings: tuple[str, ...]):
    script = (
        "import sys\n"
        "from lowregret.cli.main import run\n"
        f"assert run(['plan', *{list(settings)!r}, '--json']) == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["steps"] == 3


def test_a_plan_is_made_for_a_device_that_is_not_here(settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    here = [item for item in settings if item not in ("--device", "cpu")]
    assert run(["plan", *here, "--rank", "4", "--device", "cuda:7", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["device"] == "cuda:7"
    assert "no cuda:7 here: planned for one with 80 GiB; --memory and --dtype say otherwise" in printed.err


def test_few_tokens_are_a_plan_too(model_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["plan", "--model", str(model_folder), "--tokens", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1


def test_full_weights_alone_come_with_the_adapter_that_would_do(
    settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    assert run(["plan", *settings, "--full", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [slot["name"] for slot in plan["slots"]] == ["full"]
    assert plan["adapter_params"] > 0
    assert plan["capacity_status"] in ("OK", "TIGHT")
    assert plan["learning_rate"] > plan["full_learning_rate"]


def test_what_a_parameter_holds_is_an_option(settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    bits: dict[str, float] = {}
    for constant in ("2", "0.5"):
        assert run(["plan", *settings, "--rank", "4", "--bits-per-parameter", constant, "--json"]) == 0
        bits[constant] = json.loads(capsys.readouterr().out)["capacity_bits"]
    assert bits["2"] == 4 * bits["0.5"]


def test_the_bits_of_generated_facts_are_known(settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    facts = ["--data" if item == "--data" else item for item in settings]
    facts[facts.index("--data") + 1] = "facts"
    unlimited = [item for item in facts if item not in ("--steps", "3")]
    assert run(["plan", *unlimited, "--limit", "500", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    # Five attributes of 35 bits in all; 500 rows less the held-out 4 and 8.
    assert plan["data_bits"] == pytest.approx((500 - 12) * 7.0, rel=0.01)
    assert plan["data_unit"] == "facts"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--group", "0", "--task", "rl"], "rl.group: in a group of 0"),
        (["--reward-bins", "0", "--task", "rl"], "reward_bins: 0 distinct rewards"),
        (["--tflops", "nan"], "--tflops: nan must be positive"),
        (["--bits-per-parameter", "0"], "--bits-per-parameter: 0 must be positive"),
    ],
)
def test_a_number_that_means_nothing_is_refused(
    settings: tuple[str, ...], flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert run(["plan", *settings, "--rank", "4", *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_plan_overwrites_nothing_and_a_file_keeps_its_task(
    settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "plan.toml"
    assert run(["plan", *settings, "--rank", "4", "--out", str(file)]) == 0
    assert run(["plan", *settings, "--rank", "4", "--out", str(file)]) == 2
    assert "plan.toml exists; name another file" in capsys.readouterr().err
    assert run(["plan", str(file), "--task", "rl"]) == 2
    assert "--task:" in capsys.readouterr().err
    assert run(["plan", *settings, "--rank", "4", "--out", str(tmp_path / "none" / "plan.toml")]) == 2
    assert "none" in capsys.readouterr().err


def test_a_reader_that_left_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = "import sys; from lowregret.cli.main import main; sys.argv = ['lowregret', 'plan', '--help']; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=120
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
