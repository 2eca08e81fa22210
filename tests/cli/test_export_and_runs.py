"""`lowregret export` and `lowregret runs` on a run of seconds."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from lowregret.cli.export import _verdict
from lowregret.cli.main import run
from tiny_folder import write_questions


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


def merged(run_folder: Path, out: Path, *flags: str) -> int:
    return run(["export", str(run_folder), "--merge", "--out", str(out), *flags])


def test_a_merged_model_is_verified_on_what_the_run_holds_out(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "model"
    assert merged(finished, out, "--slot", "r4", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    found = result["fidelity"]
    low, high = found["interval"]
    assert low <= found["estimate"] <= high
    assert found["verdict"] in ("passes", "not resolved")
    assert found["fp32_drop"] > 0
    assert found["sequences"] == found["held_out"] == 12  # 4 of validation and 8 of test
    assert result["share_of_update"] == pytest.approx(1.0, abs=0.05)
    assert 0.0 < result["share_of_weights_moved"] <= 1.0
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in out.iterdir()}


def test_the_verdict_is_printed_with_its_interval(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert merged(finished, tmp_path / "model", "--slot", "r4", "--verify-documents", "3") == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"forward fidelity: (passes|not resolved): \d\.\d+ of the fp32 loss drop of \d\.\d+ nats "
        r"\(95 % interval -?\d+\.\d+ to \d+\.\d+, 3 held-out documents\)",
        printed,
    )
    assert "share of the update that the weights hold: " in printed


def test_what_would_resolve_an_open_verdict_is_said():
    found = {"verdict": "not resolved", "estimate": 0.9, "interval": [0.7, 1.1], "fp32_drop": 0.01}
    enough = _verdict({**found, "sequences": 20, "held_out": 400, "sequences_needed": 320})
    assert enough.endswith("about 320 documents would resolve it: --verify-documents 320")
    short = _verdict({**found, "sequences": 20, "held_out": 100, "sequences_needed": 320})
    assert short.endswith("would resolve it and the run holds out 100: train with a larger --validation-size")


def test_full_fine_tuning_is_verified_too(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["export", str(finished), "--slot", "full", "--out", str(tmp_path / "bf16"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fidelity"]["verdict"] in ("passes", "not resolved")
    out = tmp_path / "fp32"
    assert run(["export", str(finished), "--slot", "full", "--dtype", "fp32", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "model of slot full written" in printed
    assert "forward fidelity: not measured: fp32 weights are not rounded" in printed
    assert (out / "model.safetensors").is_file()


def test_verification_can_be_left_out_and_that_is_said(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert merged(finished, tmp_path / "model", "--slot", "r4", "--verify-documents", "0") == 0
    assert "forward fidelity: not measured: --verify-documents 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lr", "reason"),
    [("1e-6", "% of the update: the rest is below the rounding"), ("1e-10", "changes no weight: the update is below")],
)
def test_an_adapter_that_would_vanish_is_refused_with_the_cure(
    settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], lr: str, reason: str
):
    """At 1e-6 a tenth of the update passes the rounding to nearest, at 1e-10 nothing."""
    trained, out = tmp_path / "run", tmp_path / "model"
    assert run(["sft", *settings, "--rank", "4", "--lr", lr, "--out", str(trained)]) == 0
    capsys.readouterr()
    assert merged(trained, out, "--rounding", "nearest") == 2
    said = capsys.readouterr().err
    assert reason in said
    assert "use --rounding stochastic or --dtype fp32" in said
    assert not out.exists()
    assert merged(trained, out, "--dtype", "fp32") == 0


def test_a_merge_that_fails_the_definition_is_refused_with_the_cure(
    settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """At 1e-5 the weights hold most of the update, and four hundred documents show that not all of it acts."""
    data, trained, out = write_questions(tmp_path / "sums.jsonl", 500), tmp_path / "run", tmp_path / "model"
    flags = [str(data) if item == settings[settings.index("--data") + 1] else item for item in settings]
    flags[flags.index("--test-size") + 1] = "400"
    assert run(["sft", *flags, "--rank", "4", "--lr", "1e-5", "--out", str(trained)]) == 0
    capsys.readouterr()
    nearest = ("--rounding", "nearest")
    assert merged(trained, out, *nearest, "--verify-documents", "404") == 2
    said = capsys.readouterr().err
    assert re.search(r"forward fidelity fails: the merged model has 0\.\d+ of the loss drop that was trained", said)
    assert "use --rounding stochastic or --dtype fp32" in said
    assert not out.exists()
    assert merged(trained, out, *nearest, "--verify-documents", "0") == 0
    assert "--rounding stochastic holds all of it on average" in capsys.readouterr().out


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
    assert merged(tmp_path / "run", tmp_path / "model", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["fidelity"]["verdict"] == "not measured"
    assert result["fidelity"]["reason"].startswith("data file")
    assert result["share_of_update"] == pytest.approx(1.0, abs=0.05)
    assert merged(tmp_path / "run", tmp_path / "other", "--verify-documents", "8") == 2
    assert "data file" in capsys.readouterr().err


def test_an_adapter_s_folder_stands_alone(
    finished: Path, settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    adapter = tmp_path / "adapter"
    assert run(["export", str(finished), "--slot", "r4", "--out", str(adapter)]) == 0
    assert merged(adapter, tmp_path / "model") == 0
    printed = capsys.readouterr().out
    assert "model of slot adapter written" in printed
    assert "share of the update that the weights hold: " in printed
    assert "forward fidelity: not measured: an adapter's folder has no held-out documents" in printed
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    assert merged(adapter, tmp_path / "nowhere") == 2
    assert "does not name its base; give it" in capsys.readouterr().err
    model = settings[settings.index("--model") + 1]
    assert merged(adapter, tmp_path / "given", "--model", model) == 0
    first, second = (tmp_path / name / "model.safetensors" for name in ("model", "given"))
    assert first.read_bytes() == second.read_bytes()
    capsys.readouterr()
    for flag, value in (("--slot", "r4"), ("--verify-documents", "8")):
        assert merged(adapter, tmp_path / "x", flag, value) == 2
        assert f"{flag}: an adapter's folder" in capsys.readouterr().err


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
        (["--slot", "r1", "--verify-documents", "8"], "--verify-documents: only merged weights are rounded"),
        (["--slot", "full", "--dtype", "fp32", "--verify-documents", "8"], "--verify-documents: fp32 weights"),
        (["--slot", "r1", "--merge", "--verify-documents", "1"], "--verify-documents is 1: an interval needs 2"),
        (["--slot", "r1", "--merge", "--model", "x"], "--model: a run knows its base"),
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
