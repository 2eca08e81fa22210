"""Dequantises a GGUF file into a folder of safetensors, tokenizer and config."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from lowregret.errors import ModelError


def dequantise(file: Path, folder: Path) -> None:
    """Write `folder` (config, tokenizer, fp32 safetensors), whole or not at all.

    Raises:
        ModelError: transformers can't read this GGUF, or the package `gguf` is missing.
    """
    import torch
    import transformers

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".gguf-"))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        tokenizer.save_pretrained(temporary)
        model.save_pretrained(temporary, safe_serialization=True)
        if not (folder / "config.json").is_file():  # another process may have been faster; it made the same
            os.rename(temporary, folder)
    except ImportError as error:
        raise ModelError(f"reading {file.name} needs the package gguf: pip install '.[demo]'") from error
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"GGUF file {file} can't be dequantised: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
