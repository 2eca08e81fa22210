"""What an installed wheel carries."""

import tomllib
from pathlib import Path

import lowregret


def test_every_data_file_of_the_package_is_packaged():
    package = Path(lowregret.__file__).parent
    project = tomllib.loads((package.parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["lowregret"]
    packaged = {file for pattern in patterns for file in package.glob(pattern)}
    present = {file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert {file for file in present if file.suffix != ".py"} == packaged
