"""`lowregret runs`: the runs under a folder. No torch."""

from __future__ import annotations

import dataclasses
import json
import sys

from rich.console import Console

from lowregret.cli.flags import Runs
from lowregret.errors import CheckpointError
from lowregret.report.tables import runs_table
from lowregret.store import list_runs


def runs(command: Runs) -> int:
    """Print the list; 0."""
    if not command.root.is_dir():
        raise CheckpointError(f"{command.root}: is no folder; name the one that your runs are in")
    entries = list_runs(command.root)
    if command.json:
        json.dump([{**dataclasses.asdict(entry), "path": str(entry.path)} for entry in entries], sys.stdout)
        sys.stdout.write("\n")
    elif entries:
        Console().print(runs_table(entries))
    else:
        print(f"no runs under {command.root}; `lowregret sft --help` (or rl) says how to start one")
    return 0
