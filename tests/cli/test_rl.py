"""`lowregret rl` from flags, from a spec and from a stopped run; what it prints, leaves and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowregret.cli.main import run
from lowregret.specs import AdapterSpec, RunSpec
from lowregret.specs.codec import read_toml
from lowregret.store import RunDirectory
from lowregret.store.rows import PolicyRow

ROOT = Path(__file__).parents[2]

REWARDS = """
import math


def early(*, question, answer, completion, entry):
    return float(completion[:1] < "a")


def broken(*, question, answer, completion, entry):
    raise ValueError("boom")


def nothing(*, question, answer, completion, entry):
    return math.nan


def narrow(completion):
    return 1.0
"""
"""`early` is earned by about a third of what a random byte-level model says first, and is easy to learn."""


@pytest.fixture(scope="session")
def rewards_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rewards") / "mine.py"
    file.write_text(REWARDS)
    return file


@pytest.fixture(scope="session")
def rl_settings(settings: tuple[str, ...], rewards_file: Path) -> tuple[str, ...]:
    """Flags of a run of seconds."""
    return (*settings, "--reward", f"{rewards_file}:early", "--group", "4", "--max-new-tokens", "3")


def rows_of(folder: Path) -> list[PolicyRow]:
    return [row.untimed() for row in RunDirectory.open(folder).read_policy()]


@pytest.fixture(scope="module")
def finished(rl_settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is only read."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert run(["rl", *rl_settings, "--lr", "3e-3", "--out", str(out)]) == 0
    return out


def test_one_command_leaves_a_run_and_prints_one_json_object(
    rl_settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    flags = ["--rank", "1,4", "--full", "--lr", "3e-3", "--full-lr", "1e-3", "--out", str(out), "--json"]
    assert run(["rl", *rl_settings, *flags]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["run"] == str(out)
    assert list(result["slots"]) == ["r1", "r4", "full"]
    for slot in result["slots"].values():
        assert {"test", "validation"} == set(slot["initial_accuracy"]) == set(slot["final_accuracy"])
    for line in (out / "policy.jsonl").read_text().splitlines():
        assert {"step", "slot", "reward", "entropy", "bits", "groups"} <= json.loads(line).keys()
    for slot in ("r1", "r4"):
        assert {"adapter_model.safetensors", "adapter_config.json"} <= set(os.listdir(result["adapters"][slot]))
    assert Path(result["report"]).stat().st_size > 100_000
    assert {"accuracy.png", "steps.svg"} <= set(os.listdir(out / "figures"))
    assert "step 3/3" in printed.err


def test_the_default_is_one_adapter_of_rank_1_and_is_printed(
    finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (slot,) = RunDirectory.open(finished).spec.slots
    assert isinstance(slot.weights, AdapterSpec)
    assert slot.weights.rank == 1
    assert run(["rl", "--resume", str(finished)]) == 0
    printed = capsys.readouterr()
    assert "is finished; nothing to do" in printed.err
    assert "test accuracy" in printed.out
    assert run(["runs", str(finished.parent), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    summary = RunDirectory.open(finished).summary
    assert summary is not None
    assert entry["test_accuracy"] == summary["slots"]["r1"]["final_accuracy"]["test"]
    assert (entry["test_nll"], entry["best_slot"], entry["step"]) == (None, "r1", 3)


def test_a_run_s_own_spec_gives_the_run_again_and_can_be_planned(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    again = tmp_path / "again"
    assert run(["rl", str(finished / "spec.toml"), "--out", str(again)]) == 0
    assert rows_of(again) == rows_of(finished)
    assert (again / "spec.toml").read_text() == (finished / "spec.toml").read_text()
    capsys.readouterr()
    assert run(["plan", str(finished / "spec.toml"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["task"], plan["data_units"]) == ("rl", 3 * 4 * 4)
    assert plan["memory_bytes"]["kv_cache"] > 0


def test_must_improve_judges_the_accuracy_that_the_run_counts(
    rl_settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(["rl", *rl_settings, "--lr", "1e-12", "--must-improve", "--out", str(tmp_path / "idle")]) == 1
    assert "the test accuracy did not rise by 0.02: r1" in capsys.readouterr().err
    drawn = ["--eval-samples", "8", "--judge-by", "sampled", "--must-improve", "--max-new-tokens", "1"]
    learning = ["--lr", "3e-2", "--steps", "20", "--eval-every", "20", "--out", str(tmp_path / "run")]
    assert run(["rl", *rl_settings, *drawn, *learning]) == 0


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(rl_settings: tuple[str, ...], tmp_path: Path):
    flags = ["--lr", "3e-3", "--steps", "12", "--checkpoint-every", "2", "--eval-every", "6"]
    command = [sys.executable, "-m", "lowregret", "rl", *rl_settings, *flags]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(["rl", *rl_settings, *flags, "--out", str(whole)]) == 0
    process = subprocess.Popen([*command, "--out", str(stopped)], text=True, stderr=subprocess.PIPE)
    log = stopped / "policy.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert f"lowregret rl --resume {stopped}" in " ".join(errors.split())
    assert len(rows_of(stopped)) < 12
    assert run(["rl", "--resume", str(stopped)]) == 0
    assert rows_of(stopped) == rows_of(whole)
    mine, theirs = RunDirectory.open(stopped), RunDirectory.open(whole)
    assert mine.read_accuracy() == theirs.read_accuracy()
    assert mine.read_rollouts() == theirs.read_rollouts()


BAD_INPUT = [
    (["--data", "{data}"], "--model: is missing"),
    (["--model", "{model}"], "--data: is missing"),
    (["--model", "{model}", "--data", "{data}"], "--reward: is missing"),
    (["{both}", "--reward", "exat"], "reward 'exat' is unknown; did you mean 'exact'?"),
    (["{both}", "--reward", "no/such.py:score"], "can't read"),
    (["{both}", "--reward", "{rewards}:missing"], "has no 'missing'"),
    (["{both}", "--reward", "{rewards}:narrow"], "narrow can't be called with question, answer, completion and entry"),
    (["{both}", "--reward", "{rewards}:broken"], "the data's own answers can't be scored: reward {rewards}:broken"),
    (["{both}", "--reward", "{rewards}:nothing"], "the data's own answers can't be scored: reward {rewards}:nothing"),
    (["--model", "{model}", "--data", "{prompts}", "--reward", "exact"], "is a data set without answers"),
    (["{both}", "--reward", "exact", "--max-length", "20"], "the shortest has"),
    (["{both}", "--reward", "exact", "--max-new-tokens", "3000", "--max-length", "9000"], "positions of the base"),
    (["{both}", "--reward", "exact", "--group", "1"], "rl.group: in a group of 1 the reward is its own mean"),
    (["{both}", "--reward", "exact", "--temperature", "0"], "rl.sampling.temperature: 0.0 must be a positive number"),
    (["{both}", "--reward", "exact", "--kl", "0.1", "--full"], "rl.objective.kl: full fine-tuning keeps no base"),
    (["{both}", "--reward", "exact", "--reward-timeout", "0"], "rl.rewards.0.timeout: 0.0 must be"),
    (["{both}", "--reward", "exact", "--also-eval", "markov"], "train.also_eval: is for supervised training"),
    (["{both}", "--reward", "exact", "--sampler", "vllm"], "rl.sampling.engine: vLLM is not installed"),
    (["{both}", "--reward", "exact", "--overlong", "truncate"], "a prompt can't be cut"),
    (["{both}", "--reward", "exact", "--template", "Answer!"], "has no {{question}} in it"),
    (["{both}", "--reward", "exact", "--rank", "64"], "slots.r64.weights.rank: 64 is larger than"),
    (["missing.toml"], "missing.toml: can't be read"),
    (["--resume", "nowhere"], "nowhere: not a run directory"),
]


@pytest.mark.parametrize(("flags", "said"), BAD_INPUT, ids=[said for _, said in BAD_INPUT])
def test_bad_input_is_one_line_and_exit_code_2(
    flags: list[str],
    said: str,
    model_folder: Path,
    data_file: Path,
    rewards_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"question": f"{k} + 1 = ?"}) + "\n" for k in range(60)))
    names = {"model": str(model_folder), "data": str(data_file), "prompts": str(prompts), "rewards": str(rewards_file)}
    given = ["--model", names["model"], "--data", names["data"]] if "{both}" in flags else []
    code = run(["rl", *given, *(flag.format(**names) for flag in flags if flag != "{both}")])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert said.format(**names) in line
    assert "Traceback" not in printed.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("command", "flags", "said"),
    [
        ("rl", ["--group", "8"], "rl.group: the flags say 8"),
        ("rl", ["--rank", "8"], "slots.0.name: the flags say 'r8'"),
        ("rl", ["--reward-timeout", "9"], "rl.rewards.0.timeout: the flags say 9.0"),
        ("rl", ["--out", "elsewhere"], "--out: a resumed run stays in"),
        ("sft", [], "go on with this run by lowregret rl --resume"),
    ],
)
def test_a_resume_with_another_spec_is_refused(
    finished: Path, command: str, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert run([command, "--resume", str(finished), *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_spec_of_the_other_task_names_the_command_that_runs_it(finished: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["sft", str(finished / "spec.toml")]) == 2
    assert "task: is 'rl'; run it by lowregret rl" in capsys.readouterr().err


def test_the_same_flags_on_resume_are_no_change(finished: Path, rl_settings: tuple[str, ...]):
    assert run(["rl", *rl_settings, "--lr", "3e-3", "--resume", str(finished)]) == 0


def test_the_demo_s_spec_is_rank_1_beside_rank_8():
    spec = read_toml(RunSpec, ROOT / "recipes" / "rl_demo.toml")
    assert [slot.name for slot in spec.slots] == ["r1", "r8"]
    assert spec.rl is not None
    assert (spec.task, spec.rl.group, spec.rl.sampling.max_new_tokens) == ("rl", 8, 1)
