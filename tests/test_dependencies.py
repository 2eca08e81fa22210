"""What the package imports is declared, and what is declared is pinned: none of it comes by way of another package."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED: list[str] = PROJECT["dependencies"]
OPTIONAL: list[str] = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]


def name_of(requirement: str) -> str:
    """The package's name as an index spells it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=\[ ]", requirement)[0]).lower()


def imported() -> dict[str, bool]:
    """Package -> whether a module imports it when it is itself imported, not within a function."""
    found: dict[str, bool] = {}
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in {name.split(".")[0] for name in names} - {"lowregret", *sys.stdlib_module_names}:
                found[name] = found.get(name, False) or getattr(node, "col_offset", 0) == 0
    return found


def test_every_package_that_is_imported_is_declared():
    needed, optional = {name_of(line) for line in NEEDED}, {name_of(line) for line in OPTIONAL}
    distributions = packages_distributions()
    missing = [
        name
        for name, at_once in imported().items()
        if not {name_of(one) for one in distributions.get(name, [name])} & (needed if at_once else needed | optional)
    ]
    assert missing == []


def test_every_package_that_is_needed_is_pinned_to_a_version_that_is_allowed():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {name_of(line): line.split("==")[1] for line in lines if "==" in line and not line.startswith("#")}
    for requirement in NEEDED:
        least = [int(part) for part in requirement.split(">=")[1].split(".")]
        pinned = [int(part) for part in re.findall(r"\d+", pins[name_of(requirement)])]
        assert pinned >= least, requirement
