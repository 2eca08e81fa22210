"""What a run directory promises: whole files, logs that survive a kill, one writer, typed errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lowregret.errors import CheckpointError
from lowregret.specs import (
    AdapterSpec,
    DataFacts,
    DataSpec,
    Derived,
    ModelSpec,
    OptimSpec,
    ResolvedPlan,
    RunSpec,
    SlotSpec,
)
from lowregret.store import (
    EvalRow,
    MetricRow,
    RunDirectory,
    SampleRow,
    collect_environment,
    list_runs,
)

SPEC = RunSpec(
    model=ModelSpec(source="m"),
    data=DataSpec(source="d.jsonl"),
    slots=(SlotSpec(name="r8", weights=AdapterSpec(rank=8), optim=OptimSpec(lr=2e-4)),),
)
PLAN = ResolvedPlan(
    spec=SPEC,
    facts=DataFacts(num_examples=10, num_tokens=100, num_completion_tokens=40, longest=17),
    steps=30,
    tokens_per_microbatch=2048,
    device="cpu",
    dtype="fp32",
    threads=1,
    derived=(Derived(name="steps", value=30, reason="given", source="user"),),
)
ENVIRONMENT = collect_environment(threads=1, command=("lowregret", "sft"))


def create(path: Path) -> RunDirectory:
    return RunDirectory.create(path, spec=SPEC, plan=PLAN, environment=ENVIRONMENT)


def metric(step: int, loss: float = 1.0) -> MetricRow:
    return MetricRow(step=step, slot="r8", loss=loss, tokens=100, lr=2e-4, grad_norm=0.5, seconds=0.1)


def evaluation(step: int, split: str = "test", nll: float = 1.0) -> EvalRow:
    return EvalRow(step=step, slot="r8", split=split, nll=nll, tokens=10)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        run.append_metrics([metric(1), metric(2, float("nan"))])
        run.append_metrics([metric(3, float("-inf"))])
        run.append_evals([evaluation(0)])
        run.append_samples([SampleRow(when="before", slot="base", prompt="é\n\u2028", reference="4", answer='"')])
        run.write_data_report({"read": 12, "dropped": 2})
        run.mark_finished({"steps": 3})
    back = RunDirectory.open(tmp_path / "run")
    assert (back.spec, back.plan, back.environment) == (SPEC, PLAN, ENVIRONMENT)
    rows = back.read_metrics()
    assert rows[0] == metric(1)
    assert rows[1].loss != rows[1].loss
    assert rows[2].loss == float("-inf")
    assert back.read_evals() == (evaluation(0),)
    assert back.read_samples()[0].prompt == "é\n\u2028"
    assert back.data_report == {"read": 12, "dropped": 2}
    assert back.finished
    assert back.summary == {"steps": 3}
    assert back.adapter_folder("r8") == tmp_path / "run" / "adapters" / "r8"
    assert (back.figures.name, back.report_path.name) == ("figures", "report.html")


def test_a_line_of_metrics_is_strict_json_with_the_promised_keys(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        run.append_metrics([metric(1, float("nan"))])

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0]
    record = json.loads(line, parse_constant=refuse)
    assert {"step", "slot", "loss", "tokens", "lr"} <= record.keys()
    with RunDirectory.open(tmp_path / "run") as run:
        run.append_evals([evaluation(1, nll=2.0)])
    assert json.loads((tmp_path / "run" / "evals.jsonl").read_text())["bits"] == pytest.approx(2.885390)
    assert metric(1).untimed() == replace(metric(1), seconds=None)


def test_a_torn_last_line_is_skipped_and_then_removed(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        run.append_metrics([metric(1), metric(2)])
        log = tmp_path / "run" / "metrics.jsonl"
        whole = log.read_bytes()
        for cut in range(len(whole)):
            log.write_bytes(whole[:cut])
            complete = whole[:cut].count(b"\n")
            assert run.read_metrics() == (metric(1), metric(2))[:complete]
            run.append_metrics([metric(9)])
            assert run.read_metrics() == (*(metric(1), metric(2))[:complete], metric(9))


def test_a_bad_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        run.append_metrics([metric(1), metric(2), metric(3)])
    log = tmp_path / "run" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    for bad in ("{\n", "[]\n", '{"step": 2}\n', lines[1].replace("loss", "lass"), "\x00\x00\n"):
        log.write_text(lines[0] + bad + lines[2])
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 "):
            run.read_metrics()
        # The same line at the end is what a power cut leaves, and is passed over.
        log.write_text(lines[0] + lines[2] + bad)
        assert run.read_metrics() == (metric(1), metric(3))


def test_truncating_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        run.append_metrics([metric(step) for step in range(1, 8)])
        run.append_evals([evaluation(step) for step in (0, 1, 2, 4, 7)])
        run.append_samples(
            [SampleRow(when=when, slot="r8", prompt="", reference="", answer="") for when in ("before", "after")]
        )
        before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
        run.truncate_logs(4)
        assert [row.step for row in run.read_metrics()] == [1, 2, 3, 4]
        assert [row.step for row in run.read_evals()] == [0, 1, 2, 4]
        assert [row.when for row in run.read_samples()] == ["before"]
        assert before.startswith((tmp_path / "run" / "metrics.jsonl").read_bytes())
        run.truncate_logs(-1)
        assert run.read_metrics() == run.read_evals() == run.read_samples() == ()


def test_another_run_and_other_files_are_refused_with_the_remedy(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    with pytest.raises(CheckpointError, match=r"holds another run; .*--out.* --resume .*/run"):
        create(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match=r"thesis\.tex.*empty folder"):
        create(tmp_path / "mine")
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "plan.toml").write_text("a user's own")
    with pytest.raises(CheckpointError, match=r"plan\.toml"):
        create(tmp_path / "plans")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        create(tmp_path / "file")
    with pytest.raises(CheckpointError, match="not a run directory"):
        RunDirectory.open(tmp_path / "mine")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "mine", "plans", "file"}


def test_a_creation_that_was_killed_can_be_repeated(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    (tmp_path / "run" / "spec.toml").rename(tmp_path / "run" / ".spec.toml.tmp-1")
    with create(tmp_path / "run") as run:
        assert run.spec == SPEC


def test_a_damaged_record_is_a_typed_error(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.close()
    (run.path / "environment.json").write_text('{"python"')
    with pytest.raises(CheckpointError, match=r"environment\.json"):
        _ = run.environment
    (run.path / "environment.json").write_text('{"python": 3}')
    with pytest.raises(CheckpointError, match=r"environment\.json: python: is 3"):
        _ = run.environment


def test_two_holders_never_write(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        assert run.running
        other = RunDirectory.open(tmp_path / "run")
        assert other.spec == SPEC  # Reading needs no lock.
        for write in (
            lambda: other.append_metrics([metric(1)]),
            lambda: other.truncate_logs(0),
            lambda: other.mark_finished({}),
            other.acquire,
        ):
            with pytest.raises(CheckpointError, match="another process is training"):
                write()
    assert not other.running
    other.append_metrics([metric(1)])
    other.close()


HOLDER = """
import sys, time
from lowregret.store import MetricRow, RunDirectory
run = RunDirectory.open(sys.argv[1])
step = 0
while True:
    step += 1
    run.append_metrics([MetricRow(step=step, slot=f"r{i}", loss=1.0, tokens=1, lr=1.0) for i in range(50)])
    with run.writing_checkpoint(step) as folder:
        (folder / "state.json").write_text(str(step) * 20000)
    print(step, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.031])
def test_kill_9_leaves_whole_checkpoints_readable_logs_and_no_lock(tmp_path: Path, delay: float) -> None:
    create(tmp_path / "run").close()
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as printed:
        for _ in range(4):
            printed.readline()
        with pytest.raises(CheckpointError, match="another process is training"):
            RunDirectory.open(tmp_path / "run").acquire()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
        printed.read()

    skipped: list[str] = []
    with RunDirectory.open(tmp_path / "run") as run:
        found = run.latest_checkpoint(skipped.append)
        assert found is not None
        assert found[0] >= 4
        assert skipped == []
        step, folder = found
        assert (folder / "state.json").read_text() == str(step) * 20000
        run.truncate_logs(step)
        assert [row.step for row in run.read_metrics()] == [s for s in range(1, step + 1) for _ in range(50)]
        with run.writing_checkpoint(step + 1) as folder:
            (folder / "state.json").write_text("{}")
        names = sorted(path.name for path in (run.path / "checkpoints").iterdir())
        assert names == [f"step-{step:06d}", f"step-{step + 1:06d}"]


def test_runs_are_listed_whatever_their_state(tmp_path: Path) -> None:
    with create(tmp_path / "a" / "one") as done:
        done.append_metrics([metric(1), metric(30)])
        done.append_evals([evaluation(0, "test", 2.0), evaluation(30, "test", 1.5), evaluation(30, "validation", 1.6)])
        done.mark_finished({})
    stopped = create(tmp_path / "two")
    stopped.append_metrics([metric(7)])
    stopped.close()
    broken = create(tmp_path / "three")
    broken.close()
    (tmp_path / "three" / "spec.toml").write_text("task = 3")
    (tmp_path / "notes").mkdir()
    with create(tmp_path / "four"):
        entries = {entry.path.name: entry for entry in list_runs(tmp_path)}
    assert {name: entry.status for name, entry in entries.items()} == {
        "one": "finished",
        "two": "stopped",
        "three": "unreadable",
        "four": "running",
    }
    assert (entries["one"].step, entries["one"].steps, entries["one"].slots) == (30, 30, ("r8",))
    assert (entries["one"].best_slot, entries["one"].test_nll) == ("r8", 1.5)
    assert (entries["two"].step, entries["two"].test_nll) == (7, None)
    assert "spec.toml: task: is 3" in (entries["three"].problem or "")
    assert list_runs(tmp_path / "nowhere") == ()
    assert [entry.path.name for entry in list_runs(tmp_path / "two")] == ["two"]
