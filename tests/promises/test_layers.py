"""Promise: which room imports which is the table of docs/architecture.md, and torch-free rooms import without torch."""

from __future__ import annotations

import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "lowregret"

LAYER_0 = ("errors", "folders", "hub", "specs", "batches")
"""Nouns and errors: open to every room, and importing none."""

MAY_IMPORT = {
    "kernels": "",
    "planner": "",
    "store": "",
    "data": "",
    "rewards": "",
    "objectives": "kernels",
    "adapters": "kernels",
    "models": "kernels adapters",
    "sampling": "kernels data rewards objectives adapters models",
    "training": "planner store kernels data objectives adapters models sampling",
    "export": "store data adapters models training",
    "studies": "planner store",
    "report": "store studies",
    "launch": "planner store data rewards models studies training",
}
"""Room -> the rooms beside layer 0 that it may import; `cli` and the package itself may import all of them."""

TORCH_FREE_ROOMS = ("errors", "folders", "hub", "specs", "planner", "store", "rewards", "studies", "report", "cli")
TORCH_FREE_MODULES = ("", "models.locate", "data.load", "data.tokenizer", "training.progress")
"""Modules of other rooms that `import lowregret` and `lowregret plan` need."""


def room_of(module: str) -> str:
    return module.removeprefix("lowregret.").split(".")[0]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("lowregret", include_external_packages=True, cache_dir=None)


def test_every_room_stands_in_the_table():
    found = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found == {*LAYER_0, *MAY_IMPORT, "cli", "__init__", "__main__"}


def test_rooms_import_only_what_the_table_allows(graph: grimp.ImportGraph):
    broken: list[str] = []
    for module in sorted(graph.modules):
        room = room_of(module)
        if not module.startswith("lowregret.") or room in ("cli", "__main__"):
            continue
        allowed = {room, *LAYER_0, *MAY_IMPORT.get(room, "").split()}
        imported = graph.find_modules_directly_imported_by(module)
        broken += [
            f"{module} imports {other}"
            for other in sorted(imported)
            if other.startswith("lowregret") and room_of(other) not in allowed
        ]
    assert broken == []


def test_the_linter_holds_the_same_table():
    contracts = ConfigParser()
    contracts.read(ROOT / ".importlinter")
    for room, allowed in MAY_IMPORT.items():
        forbidden = set(contracts[f"importlinter:contract:{room}"]["forbidden_modules"].split())
        others = {*MAY_IMPORT, "cli"} - {room, *allowed.split()}
        assert forbidden == {f"lowregret.{other}" for other in others}, room


def test_one_module_imports_ray(graph: grimp.ImportGraph):
    assert graph.find_modules_that_directly_import("ray") == {"lowregret.launch.ray_cluster"}


def test_the_contract_is_kept():
    assert lint_imports(config_filename=str(ROOT / ".importlinter"), no_cache=True) == 0


def test_torch_free_rooms_import_without_torch():
    modules = [f"lowregret.{module}".removesuffix(".") for module in TORCH_FREE_MODULES]
    for room in TORCH_FREE_ROOMS:
        files = (
            [SOURCE / f"{room}.py"] if room in LAYER_0 and room != "specs" else sorted((SOURCE / room).rglob("*.py"))
        )
        names = [".".join(file.relative_to(SOURCE.parent).with_suffix("").parts) for file in files]
        modules += [name.removesuffix(".__init__") for name in names]
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name + ' loads torch'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
