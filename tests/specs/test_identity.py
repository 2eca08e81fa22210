"""The identity is the same in another process and moves with every field that decides numbers."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from lowregret.specs import (
    AdapterSpec,
    DataSpec,
    FullSpec,
    ModelSpec,
    OptimSpec,
    RewardSpec,
    RLSpec,
    RunSpec,
    SlotSpec,
    TrackingSpec,
)
from lowregret.specs.codec import to_toml
from lowregret.specs.identity import identity

RUN = RunSpec(
    model=ModelSpec(source="m"),
    data=DataSpec(source="d.jsonl"),
    slots=(
        SlotSpec(name="r8", weights=AdapterSpec(rank=8), optim=OptimSpec(lr=2e-4)),
        SlotSpec(name="full", weights=FullSpec(), optim=OptimSpec(lr=1e-5)),
    ),
    rl=RLSpec(rewards=(RewardSpec(source="exact"),)),
)
CONTENTS = {"model_hash": "m0", "data_hash": "d0", "dtype": "fp32", "device_class": "cpu"}


def changes(spec: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every field of the tree with the tree in which only that field is changed."""
    found: list[tuple[str, Any]] = []
    for field in dataclasses.fields(spec):
        value, name = getattr(spec, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            found += [(n, replace(spec, **{field.name: v})) for n, v in changes(value, f"{name}.")]
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for i, item in enumerate(value):
                for n, changed in changes(item, f"{name}[{i}]."):
                    found.append((n, replace(spec, **{field.name: (*value[:i], changed, *value[i + 1 :])})))
        else:
            found.append((name, replace(spec, **{field.name: other(field.name, value)})))
    return found


def other(name: str, value: Any) -> Any:
    """A value of the field's type that differs from the given one as little as possible."""
    choices = {
        "format": "text",
        "loss_on": "last",
        "overlong": "truncate",
        "support": "matched",
        "rounding": "nearest",
        "arithmetic": "add",
        "start": "bf16",
        "kind": "linear",
        "dtype": "fp32",
        "ratio": "sequence",
        "normaliser": "tokens",
        "engine": "vllm",
        "judge_by": "sampled",
    }
    if name in choices:
        return choices[name]
    if name == "columns":
        return (("question", "problem"),)
    if name == "fidelity_at":
        return (7,)
    if name == "betas":
        return (value[0], value[1] + 1e-12)
    if value is None:
        strings = {"revision", "config", "test_split", "test_source", "tracker", "template"}
        floats = {"lr", "lr_b", "eps_b", "weight_decay_b", "clip_norm", "clip_low", "clip_high", "truncate"}
        return "x" if name in strings else 0.5 if name in floats else 7
    if isinstance(value, tuple):
        return (*value, "x")
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    return value * (1 + 1e-12) + 1e-15 if isinstance(value, float) else value + 1


ALL_CHANGES = changes(RUN)


def test_the_walk_meets_every_field() -> None:
    names = [name for name, _ in ALL_CHANGES]
    assert len(names) == len(set(names))
    assert {"model.revision", "slots[0].weights.alpha", "slots[1].weights.rounding", "train.schedule.kind"} <= set(
        names
    )


@pytest.mark.parametrize(("name", "changed"), ALL_CHANGES, ids=[name for name, _ in ALL_CHANGES])
def test_any_changed_field_changes_it_but_tracking_does_not(name: str, changed: RunSpec) -> None:
    assert changed != RUN
    same = identity(changed, **CONTENTS) == identity(RUN, **CONTENTS)
    assert same == name.startswith("tracking.")


def test_slots_count_in_order() -> None:
    assert identity(replace(RUN, slots=RUN.slots[::-1]), **CONTENTS) != identity(RUN, **CONTENTS)
    assert identity(replace(RUN, slots=RUN.slots[:1]), **CONTENTS) != identity(RUN, **CONTENTS)


@pytest.mark.parametrize("name", CONTENTS)
def test_contents_and_arithmetic_change_it(name: str) -> None:
    assert identity(RUN, **{**CONTENTS, name: "other"}) != identity(RUN, **CONTENTS)


def test_tracking_is_left_out() -> None:
    assert identity(replace(RUN, tracking=TrackingSpec(tracker="wandb")), **CONTENTS) == identity(RUN, **CONTENTS)


def test_same_in_another_process(tmp_path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(to_toml(RUN), encoding="utf-8")
    program = (
        "import sys; from lowregret.specs import RunSpec; from lowregret.specs.codec import read_toml;"
        "from lowregret.specs.identity import identity;"
        f"print(identity(read_toml(RunSpec, sys.argv[1]), **{CONTENTS!r}), 'torch' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert printed == [identity(RUN, **CONTENTS), "False"]
