"""`lowregret export` and `lowregret runs` on a run of seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lowregret.cli.main import run


@pytest.fixture(scope="module")
def finished(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mine"
    flags = ["--rank", "1,4", "--lr", "3e-3", "--full", "--full-lr", "1e-3", "--out", str(out)]
    assert run(["sft", *settings, *flags]) == 0
    return out


def test_an_adapter_is_written_and_read_back(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "adapter"
    assert run(["export", str(finished), "--slot", "r4", "--out", str(out)]) == 0
    assert "adapter of slot r4 written" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_merged_model_reports_what_survives(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "model"
    assert run(["export", str(finished), "--slot", "r4", "--merge", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    low, high = result["share_of_loss_drop_interval"]
    assert low <= result["share_of_loss_drop"] <= high
    assert 0.0 < result["share_of_weights_moved"] <= 1.0
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in out.iterdir()}


def test_full_fine_tuning_is_written_as_a_model(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "model"
    assert run(["export", str(finished), "--slot", "full", "--dtype", "fp32", "--out", str(out)]) == 0
    assert "model of slot full written" in capsys.readouterr().out
    assert (out / "model.safetensors").is_file()


def test_without_its_data_a_merge_says_what_it_did_not_measure(
    settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    own = tmp_path / "own.jsonl"
    given = Path(settings[settings.index("--data") + 1])
    own.write_text(given.read_text())
    flags = [str(own) if item == str(given) else item for item in settings]
    assert run(["sft", *flags, "--rank", "4", "--lr", "3e-3", "--out", str(tmp_path / "run")]) == 0
    own.unlink()
    capsys.readouterr()
    assert run(["export", str(tmp_path / "run"), "--merge", "--out", str(tmp_path / "model"), "--json"]) == 0
    printed = capsys.readouterr()
    assert "share_of_loss_drop" not in json.loads(printed.out)
    assert "the surviving share of the loss drop is not measured: data file" in printed.err


def test_another_model_than_the_run_s_is_refused(
    settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = tmp_path / "model"
    shutil.copytree(settings[settings.index("--model") + 1], copy)
    flags = [str(copy) if item == settings[settings.index("--model") + 1] else item for item in settings]
    assert run(["sft", *flags, "--rank", "4", "--lr", "3e-3", "--out", str(tmp_path / "run")]) == 0
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert run(["export", str(tmp_path / "run"), "--out", str(tmp_path / "adapter")]) == 2
    assert "has changed since it began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--slot: the run has several; name one of r1, r4, full"),
        (["--slot", "r2"], "has no slot 'r2'; name one of r1, r4, full"),
        (["--slot", "r1", "--rounding", "nearest"], "--rounding: only merged weights are rounded"),
        (["--slot", "r1", "--merge", "--dtype", "fp32", "--rounding", "nearest"], "--rounding: fp32 weights"),
    ],
)
def test_what_can_not_be_exported_is_said(
    finished: Path, tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert run(["export", str(finished), *flags, "--out", str(tmp_path / "x")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_runs_are_listed(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["runs", str(finished.parent), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["path"], entry["status"], entry["steps"]) == (str(finished), "finished", 3)
    assert run(["runs", str(finished.parent)]) == 0
    assert "finished" in capsys.readouterr().out
    assert run(["runs", str(tmp_path)]) == 0
    assert f"no runs under {tmp_path}" in capsys.readouterr().out
    assert run(["runs", str(tmp_path / "none")]) == 2
