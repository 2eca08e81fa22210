"""`lowregret bases`: make the micro bases, which are pretrained here once and cached."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from lowregret.cli.flags import Bases
from lowregret.cli.machine import num_threads
from lowregret.cli.prepare import Notify, notify_on
from lowregret.errors import ModelError
from lowregret.models.micro import BASES, base_folder
from lowregret.specs import ModelSpec


def bases(command: Bases) -> int:
    """Make those that are named, all where none is; 0."""
    notify = notify_on(Console(stderr=True))
    for name in command.names or BASES:
        if name not in BASES:
            raise ModelError(f"base {name!r} is not known; give some of {', '.join(BASES)}")
    for name in command.names or BASES:
        ensure_bases([ModelSpec(source=name)], notify=notify)
        print(f"{name}: {base_folder(name)}")
    return 0


def ensure_bases(models: Iterable[ModelSpec], *, notify: Notify) -> None:
    """Pretrain the micro bases among the models that are not cached yet; the others are left alone."""
    missing = {m.source for m in models if m.source in BASES and not (base_folder(m.source) / "config.json").is_file()}
    for name in sorted(missing):
        from lowregret.training.pretrain import ensure_base

        notify(f"making the base {name}, once; it takes some minutes")
        ensure_base(name, threads=num_threads(), notify=notify)
