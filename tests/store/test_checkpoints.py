"""A checkpoint is whole or not there, and damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowregret.store.checkpoints import drop_checkpoints, latest_checkpoint, list_checkpoints, writing_checkpoint


def write(root: Path, step: int, keep: int = 2) -> Path:
    with writing_checkpoint(root, step, keep=keep) as folder:
        (folder / "weights.safetensors").write_bytes(bytes(range(256)) * step)
        (folder / "rng").mkdir()
        (folder / "rng" / "state.json").write_text(f'{{"step": {step}}}')
    return root / f"step-{step:06d}"


def refuse(message: str) -> None:
    raise AssertionError(message)


def test_the_newest_is_found_and_the_last_two_are_kept(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path, refuse) is None
    for step in (10, 20, 30, 1_000_000):
        write(tmp_path, step)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1_000_000, 30]
    assert latest_checkpoint(tmp_path, refuse) == (1_000_000, tmp_path / "step-1000000")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000030", "step-1000000"]


def flip(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "one bit": (flip, "weights.safetensors does not match its checksum"),
    "cut short": (lambda f: (f / "weights.safetensors").write_bytes(b"x"), "does not match"),
    "a file gone": (lambda f: (f / "rng" / "state.json").unlink(), "rng/state.json is missing"),
    "a file more": (lambda f: (f / "other").write_text(""), "other is not in manifest.json"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "manifest cut": (lambda f: (f / "manifest.json").write_text('{"sha256": {'), "manifest.json is torn"),
    "manifest else": (lambda f: (f / "manifest.json").write_text('{"sha256": 3}'), "manifest.json is torn"),
    "manifest list": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is torn"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_one_is_reported_and_the_one_before_used(tmp_path: Path, name: str) -> None:
    damage, says = DAMAGE[name]
    before, newest = write(tmp_path, 10), write(tmp_path, 20)
    damage(newest)
    heard: list[str] = []
    assert latest_checkpoint(tmp_path, heard.append) == (10, before)
    assert len(heard) == 1
    assert says in heard[0]
    assert "step-000020" in heard[0]
    damage(before)
    assert latest_checkpoint(tmp_path, heard.append) is None
    # Training that goes on from the one before comes to the same step again and replaces the damaged folder.
    write(tmp_path, 20)
    assert latest_checkpoint(tmp_path, refuse) == (20, newest)


def test_going_on_from_an_older_one_does_not_remove_it_for_a_damaged_newer_one(tmp_path: Path) -> None:
    write(tmp_path, 10)
    flip(write(tmp_path, 20))
    write(tmp_path, 15)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [20, 15, 10]


def test_an_error_while_writing_leaves_the_old_ones_alone(tmp_path: Path) -> None:
    write(tmp_path, 10)

    def interrupted() -> None:
        with writing_checkpoint(tmp_path, 20, keep=1) as folder:
            (folder / "weights.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010"]
    assert latest_checkpoint(tmp_path, refuse) == (10, tmp_path / "step-000010")


def test_drop_checkpoints_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    drop_checkpoints(root)  # there is none yet
    for step in (1, 2):
        with writing_checkpoint(root, step, keep=2) as folder:
            (folder / "weights").write_bytes(b"x")
    drop_checkpoints(root)
    assert not root.exists()
