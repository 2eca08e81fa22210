"""What a run shows: the numbers of the reports, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lowregret.cli.live import Fan, LiveDisplay, PlainLines, display
from lowregret.specs import (
    AdapterSpec,
    DataFacts,
    DataSpec,
    ModelSpec,
    OptimSpec,
    ResolvedPlan,
    RunSpec,
    SlotSpec,
)
from lowregret.training.progress import EvalReport, ProgressListener, StepReport


def plan_of(*names: str, steps: int = 100) -> ResolvedPlan:
    slots = tuple(SlotSpec(name=name, weights=AdapterSpec(rank=1), optim=OptimSpec(lr=1e-4)) for name in names)
    spec = RunSpec(model=ModelSpec(source="m"), data=DataSpec(source="d"), slots=slots)
    facts = DataFacts(num_examples=1, num_tokens=1, num_completion_tokens=1, longest=1)
    return ResolvedPlan(
        spec=spec, facts=facts, steps=steps, tokens_per_microbatch=1, device="cpu", dtype="fp32", threads=1
    )


def step_report(step: int, loss: float) -> StepReport:
    return StepReport(step=step, steps=100, losses={"r1": loss}, tokens_per_second=1234.0, seconds_left=75.0)


def events(listener: ProgressListener) -> None:
    listener.on_plan(plan_of("r1"))
    listener.on_eval(EvalReport(step=0, split="validation", nll={"base": 2.0, "r1": 2.0}))
    listener.on_eval(EvalReport(step=0, split="test", nll={"base": 9.0, "r1": 9.0}))
    listener.on_step(step_report(1, 1.75))
    listener.on_eval(EvalReport(step=1, split="validation", nll={"r1": 1.5}))
    listener.on_message("a slot was retired")


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=False)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_name_every_event_once(console: Console):
    with display(console) as shown:
        assert isinstance(shown, PlainLines)
        events(shown)
    assert text_of(console).splitlines() == [
        "step 0  validation NLL: base 2.0000  r1 2.0000",
        "step 0  test NLL: base 9.0000  r1 9.0000",
        "step 1/100  1,234 tokens/s  1:15 left  loss: r1 1.7500",
        "step 1  validation NLL: r1 1.5000",
        "a slot was retired",
    ]


def test_plain_lines_of_steps_are_rare_but_the_last_is_there(console: Console):
    with PlainLines(console) as shown:
        for step in range(1, 101):
            shown.on_step(step_report(step, 1.0))
    lines = text_of(console).splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "100/100"]


def test_the_live_table_ends_on_the_latest_numbers():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with display(console) as shown:
        assert isinstance(shown, LiveDisplay)
        events(shown)
    last = text_of(console).rpartition("step 1/100")[2]
    assert "1,234 tokens/s  1:15 left" in last
    assert "1.7500" in last
    assert "2.0000 -> 1.5000" in last
    assert "9.0000" not in last
    assert "a slot was retired" in text_of(console)


def test_a_fan_passes_every_event_to_all():
    consoles = [Console(file=io.StringIO(), width=100, force_terminal=False) for _ in range(2)]
    events(Fan([PlainLines(console) for console in consoles]))
    first, second = map(text_of, consoles)
    assert first == second != ""
