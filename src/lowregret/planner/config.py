"""config.json as typed fields: each read says what is missing and in which file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from lowregret.errors import SpecError


class Config:
    """The text part of a config.json."""

    def __init__(self, file: Path, values: Mapping[str, object]) -> None:
        self.file = file
        self.values = values

    @staticmethod
    def read(folder: Path) -> Config:
        """Read `folder`/config.json; of a multimodal model the part `text_config`.

        Raises:
            SpecError: the file is missing or no JSON object.
        """
        file = folder / "config.json"
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise SpecError(f"{file}: can't be read ({error.strerror}); give a folder with a config.json") from error
        except UnicodeDecodeError as error:
            raise SpecError(f"{file}: not UTF-8 text; fetch the model again") from error
        except json.JSONDecodeError as error:
            raise SpecError(f"{file}: not JSON (line {error.lineno}); fetch the model again") from error
        if not isinstance(values, dict):
            raise SpecError(f"{file}: is no JSON object; fetch the model again")
        top = cast(dict[str, object], values)
        text = top.get("text_config")
        if "hidden_size" in top or not isinstance(text, dict):
            return Config(file, top)
        inherited = {key: top[key] for key in ("tie_word_embeddings", "quantization_config") if key in top}
        model_type = {"model_type": top.get("model_type")}
        return Config(file, {**model_type, **inherited, **cast(dict[str, object], text)})

    @property
    def model_type(self) -> str:
        """`model_type`.

        Raises:
            SpecError: it is not set.
        """
        value = self.values.get("model_type")
        if not isinstance(value, str) or not value:
            raise SpecError(f"{self.file}: has no `model_type`; give a model folder as transformers writes it")
        return value

    def integer(self, *keys: str, default: int | None = None) -> int:
        """The first of the keys that is set, as a positive integer.

        Raises:
            SpecError: none is set and there is no default, or the value is no positive integer.
        """
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SpecError(f"{self.file}: `{key}` is {value!r}, should be a positive integer; mend the config")
            return value
        if default is None:
            raise SpecError(f"{self.file}: lacks `{keys[0]}`; the counts can't be made without it")
        return default

    def optional_integer(self, key: str) -> int | None:
        """An integer, or None where the key is absent or null."""
        return None if self.values.get(key) is None else self.integer(key)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean; null counts as absent.

        Raises:
            SpecError: the value is no boolean.
        """
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SpecError(f"{self.file}: `{key}` is {value!r}, should be true or false; mend the config")
        return value

    def strings(self, key: str) -> tuple[str, ...] | None:
        """A list of strings, or None where the key is absent."""
        value = self.values.get(key)
        return tuple(str(item) for item in cast(list[object], value)) if isinstance(value, list) else None

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of integers; empty where the key is absent."""
        value = self.values.get(key)
        items = cast(list[object], value) if isinstance(value, list) else []
        return tuple(item for item in items if isinstance(item, int))
