"""The identity of a run: one hash of everything that decides its numbers.

Guarantees: the same in every process and on every machine; any changed field, another content of the model or the
data, another number format or class of device gives another identity. What does not touch the numbers is left out:
tracking, and the output folder, which is not in a spec to begin with.
"""

from __future__ import annotations

import hashlib
import json

from lowregret.specs.codec import to_dict
from lowregret.specs.run import RunSpec

DIGITS = 32
"""Hexadecimal digits that are kept: 128 bits, so that no two cells of any study collide."""


def identity(spec: RunSpec, *, model_hash: str, data_hash: str, dtype: str, device_class: str) -> str:
    """Hash of the canonical spec with the contents and the arithmetic that it is run with.

    `model_hash` and `data_hash` are hashes of contents, because a path or a hub name can come to mean other bytes;
    `device_class` is a kind of device (`cpu`, `cuda`), because sums differ between kinds.

    >>> from lowregret.specs import DataSpec, ModelSpec
    >>> spec = RunSpec(model=ModelSpec(source="m"), data=DataSpec(source="facts"), slots=())
    >>> len(identity(spec, model_hash="m0", data_hash="d0", dtype="fp32", device_class="cpu"))
    32
    """
    fields = to_dict(spec)
    del fields["tracking"]
    canonical = {
        "spec": fields,
        "model_hash": model_hash,
        "data_hash": data_hash,
        "dtype": dtype,
        "device_class": device_class,
    }
    text = json.dumps(canonical, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:DIGITS]
