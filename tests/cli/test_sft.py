"""`lowregret sft` from flags, from a spec and from a stopped run; what it prints, leaves and refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lowregret.cli.main import run
from lowregret.specs import AdapterSpec, RunSpec
from lowregret.specs.codec import read_toml
from lowregret.store import RunDirectory

ROOT = Path(__file__).parents[2]


def losses(folder: Path) -> list[tuple[int, str, float]]:
    return [(row.step, row.slot, row.loss) for row in RunDirectory.open(folder).read_metrics()]


@pytest.fixture(scope="module")
def finished(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is only read."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert run(["sft", *settings, "--rank", "1,4", "--lr", "3e-3", "--out", str(out)]) == 0
    return out


def test_one_command_leaves_a_run_and_prints_one_json_object(
    settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    flags = ["--rank", "1,4", "--lr", "3e-3", "--out", str(out), "--json", "--must-improve"]
    assert run(["sft", *settings, *flags]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["run"] == str(out)
    assert list(result["slots"]) == ["r1", "r4"]
    for slot in result["slots"].values():
        assert slot["final_nll"]["test"] < slot["initial_nll"]["test"]
    for line in (out / "metrics.jsonl").read_text().splitlines():
        assert {"step", "slot", "loss", "tokens", "lr"} <= json.loads(line).keys()
    for slot in ("r1", "r4"):
        assert {"adapter_model.safetensors", "adapter_config.json"} <= set(os.listdir(result["adapters"][slot]))
    assert Path(result["report"]).stat().st_size > 100_000
    assert list((out / "figures").glob("*.png"))
    assert "step 3/3" in printed.err
    assert "slots.r1" not in printed.out


def test_a_run_s_own_spec_gives_the_run_again(finished: Path, tmp_path: Path):
    again = tmp_path / "again"
    assert run(["sft", str(finished / "spec.toml"), "--out", str(again)]) == 0
    assert losses(again) == losses(finished)
    assert (again / "spec.toml").read_text() == (finished / "spec.toml").read_text()


def test_without_rank_the_planner_suggests_one_and_says_why(settings: tuple[str, ...], tmp_path: Path):
    out = tmp_path / "run"
    assert run(["sft", *settings, "--alpha", "16", "--out", str(out)]) == 0
    made = RunDirectory.open(out)
    (slot,) = made.spec.slots
    assert isinstance(slot.weights, AdapterSpec)
    assert slot.weights.alpha == 16.0
    assert made.plan.derived[0].name == f"slots.{slot.name}.weights.rank"
    assert "bits" in made.plan.derived[0].reason


def test_full_fine_tuning_and_further_data_are_part_of_the_same_run(
    settings: tuple[str, ...], data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(data_file.read_text().splitlines(keepends=True)[:20]))
    flags = ["--rank", "2", "--full", "--full-lr", "1e-3", "--also-eval", str(other), "--out", str(tmp_path / "run")]
    assert run(["sft", *settings, *flags, "--json"]) == 0
    slots = json.loads(capsys.readouterr().out)["slots"]
    assert set(slots) == {"r2", "full"}
    assert set(slots["full"]["final_nll"]) == {"validation", "test", str(other)}


def test_must_improve_fails_a_run_that_learned_nothing(
    settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--rank", "1", "--lr", "1e-12", "--out", str(tmp_path / "run"), "--must-improve"]
    assert run(["sft", *settings, *flags]) == 1
    assert "the test NLL did not fall by 0.01 nats: r1" in capsys.readouterr().err


def test_the_default_folder_is_new_each_time(
    settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path
):
    monkeypatch.chdir(tmp_path)
    assert run(["sft", *settings, "--rank", "1"]) == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith(f"{model_folder.name}-sums-20")


def test_resuming_a_finished_run_says_so(finished: Path, capsys: pytest.CaptureFixture[str]):
    before = losses(finished)
    assert run(["sft", "--resume", str(finished)]) == 0
    assert "is finished; nothing to do" in capsys.readouterr().err
    assert losses(finished) == before


def test_resuming_a_finished_run_draws_a_report_that_is_missing(settings: tuple[str, ...], tmp_path: Path):
    out = tmp_path / "run"
    assert run(["sft", *settings, "--rank", "1", "--out", str(out)]) == 0
    (out / "report.html").unlink()
    assert run(["sft", "--resume", str(out)]) == 0
    assert (out / "report.html").stat().st_size > 100_000


def test_a_spec_that_was_edited_by_hand_is_refused_on_resume(
    settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    assert run(["sft", *settings, "--rank", "1", "--out", str(out)]) == 0
    spec = out / "spec.toml"
    spec.write_text(spec.read_text().replace("steps = 3", "steps = 30"))
    assert run(["sft", "--resume", str(out)]) == 2
    assert "spec.toml: was changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steps", "9"], "train.steps: the flags say 9"),
        (["--rank", "1,8"], "slots.0.optim.lr: the flags say None"),
        (["--out", "elsewhere"], "--out: a resumed run stays in"),
    ],
)
def test_a_resume_with_another_spec_is_refused(
    finished: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert run(["sft", "--resume", str(finished), *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_resume_on_changed_data_is_refused(
    settings: tuple[str, ...], data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    own = tmp_path / "own.jsonl"
    own.write_text(data_file.read_text())
    own_settings = [str(own) if item == str(data_file) else item for item in settings]
    out = tmp_path / "run"
    assert run(["sft", *own_settings, "--rank", "1", "--out", str(out)]) == 0
    (out / "summary.json").unlink()
    own.write_text(data_file.read_text().replace("12", "21"))
    assert run(["sft", "--resume", str(out)]) == 2
    assert f"the data {own} has changed since it began; start a new run" in capsys.readouterr().err


BAD_INPUT = [
    ([], "--model: is missing"),
    (["--model", "{model}"], "--data: is missing"),
    (["--model", "no/such/folder/here", "--data", "{data}"], "model 'no/such/folder/here'"),
    (["--model", "{model}", "--data", "nothing.jsonl"], "data file nothing.jsonl does not exist"),
    (["--model", "{model}", "--data", "{bad}"], "{bad}"),
    (["--model", "{model}", "--data", "{data}", "--rank", "0"], "slots.r0.weights.rank: 0"),
    (["--model", "{model}", "--data", "{data}", "--rank", "64"], "slots.r64.weights.rank: 64 is larger than"),
    (["--model", "{model}", "--data", "{data}", "--rank", "1", "--lr", "nan"], "slots.r1.optim.lr: nan"),
    (["--model", "{model}", "--data", "{data}", "--rank", "1", "--lr", "-1e-4"], "slots.r1.optim.lr: -0.0001"),
    (
        ["--model", "{model}", "--data", "{data}", "--rank", "1", "--targets", "nope"],
        "slots.r1.weights.targets: 'nope'",
    ),
    (["--model", "{model}", "--data", "{data}", "--rank", "1", "--test-size", "5000"], "test"),
    (["--model", "{model}", "--data", "{data}", "--limit", "-3"], "data.limit: -3 must be at least 1"),
    (["--model", "{model}", "--data", "{data}", "--batch-size", "0"], "train.batch_size: 0 must be at least 1"),
    (["--model", "{model}", "--data", "{data}", "--also-eval", "none.jsonl"], "data file none.jsonl does not exist"),
    (["--model", "{model}", "--data", "{data}", "--rank", "1", "--columns", "question=q"], "q"),
    (["--model", "{model}", "--data", "{data}", "--rank", "1", "--device", "tpu"], "hardware.device: 'tpu'"),
    (["missing.toml"], "missing.toml: can't be read"),
    (["--resume", "nowhere"], "nowhere: not a run directory"),
]


@pytest.mark.parametrize(("flags", "said"), BAD_INPUT, ids=[said for _, said in BAD_INPUT])
def test_bad_input_is_one_line_and_exit_code_2(
    flags: list[str],
    said: str,
    model_folder: Path,
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "a", "answer": "b"}\n{"question": \n')
    names = {"model": str(model_folder), "data": str(data_file), "bad": str(bad)}
    code = run(["sft", *(flag.format(**names) for flag in flags)])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert said.format(**names) in line
    assert "Traceback" not in printed.err
    assert not (tmp_path / "runs").exists()


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]):
    assert run(["sft", "--debug"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_spec_file_and_flags_that_differ_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["sft", str(finished / "spec.toml"), "--steps", "4"]) == 2
    assert "train.steps: the flags say 4" in capsys.readouterr().err


def test_the_demo_s_spec_is_three_adapters():
    spec = read_toml(RunSpec, ROOT / "recipes" / "demo.toml")
    assert [slot.name for slot in spec.slots] == ["r1", "r8", "r64"]
    assert spec.model.source == "smollm2-135m"
