"""Writes an adapter or a merged model, reads it back, compares logits, and only then says so.

A merged model in bf16 is verified before it is written: what fails leaves no folder behind.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowregret.adapters.peft_format import StoredAdapter, join_stored, read_adapter, write_adapter
from lowregret.adapters.routing import Routing
from lowregret.batches import TokenizedExample
from lowregret.data.packing import pack
from lowregret.errors import ExportError
from lowregret.export.merge import MergeReport, Rounding, merge, replace_weights
from lowregret.export.verify import Verification, Verifier, require_faithful, require_present
from lowregret.models.causal_lm import CausalLM
from lowregret.models.load import DTYPES, load_module, with_bank
from lowregret.models.locate import ModelFolder

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True, kw_only=True)
class MergedModel:
    """What was written and how much of the update is in it.

    >>> report = MergeReport(share_of_update=1.0, share_of_weights_moved=0.5)
    >>> MergedModel(folder=Path("m"), weights=report, verification=None).verification is None
    True
    """

    folder: Path
    weights: MergeReport
    verification: Verification | None
    """None where no held-out documents were given, and in fp32, where nothing is rounded."""


def export_adapter(source: Path, folder: Path, *, model: ModelFolder, dtype: str) -> Path:
    """Copy a run's adapter as a PEFT folder, read it back and compare logits with the source.

    Raises:
        ExportError: what was written does not give the same logits, or the target folder is not empty.
    """
    _refuse_full_folder(folder)
    stored = read_adapter(source)
    module = load_module(model, dtype=torch.float32, device=torch.device("cpu"))
    lm, bank = with_bank(module)
    join_stored(bank, "source", stored)
    write_adapter(bank, "source", folder, base_model=model.name, dtype=DTYPES[dtype])
    join_stored(bank, "copy", read_adapter(folder))
    first, second = (_probe_logits(lm, slot) for slot in ("source", "copy"))
    tolerance = 1e-5 if dtype == "fp32" else 2e-2
    _require_equal(first, second, tolerance, folder)
    return folder


def export_merged(
    stored: StoredAdapter,
    folder: Path,
    *,
    model: ModelFolder,
    dtype: str,
    rounding: Rounding,
    examples: Sequence[TokenizedExample],
    tokens_per_microbatch: int,
    notify: Callable[[str], None] = lambda _: None,
) -> MergedModel:
    """Merge, verify, write, read back and compare logits.

    Args:
        examples: held-out documents that forward fidelity is measured on in bf16; under two: it is not measured.

    Raises:
        ExportError: next to nothing of the update is left, fidelity fails, or in fp32 merged and unmerged differ;
            `folder` is not made then. Or the files do not read back.
    """
    _refuse_full_folder(folder)
    module = load_module(model, dtype=torch.float32, device=torch.device("cpu"))
    report = merge(module, stored, dtype=DTYPES[dtype], rounding=rounding)
    require_present(report, DTYPES[dtype], rounding)
    if dtype == "fp32":
        lm, bank = with_bank(load_module(model, dtype=torch.float32, device=torch.device("cpu")))
        join_stored(bank, "adapter", stored)
        _require_equal(_probe_logits(lm, "adapter"), _probe_logits(CausalLM(module), None), 1e-4, folder)
        del lm, bank
    verifier = _verifier(model, dtype, examples, tokens_per_microbatch, notify)
    verification = None
    if verifier is not None:
        verification = verifier.verify(module, DTYPES[dtype], verifier.adapter_losses(stored))
        require_faithful(verification, DTYPES[dtype], rounding)
    _write_and_read_back(module, folder, model, dtype)
    return MergedModel(folder=folder, weights=report, verification=verification)


def export_full(
    masters: dict[str, Tensor],
    folder: Path,
    *,
    model: ModelFolder,
    dtype: str,
    rounding: Rounding,
    examples: Sequence[TokenizedExample],
    tokens_per_microbatch: int,
    notify: Callable[[str], None] = lambda _: None,
) -> MergedModel:
    """Write fully fine-tuned weights as a model folder, verified as `export_merged` does, and read it back.

    Args:
        masters: fp32 weights by parameter name; flat or in shape. Weights not named are the base's.

    Raises:
        ExportError: as `export_merged`.
    """
    _refuse_full_folder(folder)
    module = load_module(model, dtype=torch.float32, device=torch.device("cpu"))
    report = replace_weights(module, masters, dtype=DTYPES[dtype], rounding=rounding)
    require_present(report, DTYPES[dtype], rounding)
    verifier = _verifier(model, dtype, examples, tokens_per_microbatch, notify)
    verification = None
    if verifier is not None:
        verification = verifier.verify(module, DTYPES[dtype], verifier.full_losses(masters))
        require_faithful(verification, DTYPES[dtype], rounding)
    _write_and_read_back(module, folder, model, dtype)
    return MergedModel(folder=folder, weights=report, verification=verification)


def _verifier(
    model: ModelFolder, dtype: str, examples: Sequence[TokenizedExample], budget: int, notify: Callable[[str], None]
) -> Verifier | None:
    """None where there is nothing to verify: fp32 is not rounded, and one document has no interval."""
    if dtype == "fp32" or len(examples) < 2:
        return None
    notify(f"measuring forward fidelity on {len(examples)} held-out documents")
    return Verifier(model=model, examples=examples, budget=budget)


def _write_and_read_back(module: nn.Module, folder: Path, model: ModelFolder, dtype: str) -> None:
    expected = _probe_logits(CausalLM(module), None)
    _save(module, folder, model)
    written = load_module(replace(model, path=folder), dtype=DTYPES[dtype], device=torch.device("cpu"))
    _require_equal(expected, _probe_logits(CausalLM(written), None), 0.0, folder)


@torch.no_grad()
def _probe_logits(lm: CausalLM, slot: str | None) -> Tensor:
    """Logits of a short fixed text of token ids spread over the vocabulary."""
    tokens = torch.linspace(1, lm.vocab_size - 1, 16).to(torch.int32).numpy()
    batch = pack([("probe", TokenizedExample(tokens=tokens, completion=tokens > 0))])
    with lm.routed(Routing.from_lengths({slot: len(tokens)})):
        return lm.logits(lm.hidden(batch)).float()


def _require_equal(expected: Tensor, found: Tensor, tolerance: float, folder: Path) -> None:
    difference = float((expected - found).abs().max() / expected.abs().max())
    if not difference <= tolerance:
        raise ExportError(
            f"{folder} does not read back equal: logits differ by {difference:.1e} of their size; write it again"
        )


def _refuse_full_folder(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise ExportError(f"--out {folder} is not empty; name a new folder")


def _save(module: nn.Module, folder: Path, model: ModelFolder) -> None:
    """config, safetensors and the base's tokenizer files, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".export-"))
    try:
        cast(Any, module).save_pretrained(temporary, safe_serialization=True)
        for name in TOKENIZER_FILES:
            if (model.path / name).is_file():
                shutil.copy2(model.path / name, temporary / name)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise ExportError(f"can't write {folder}: {error}; free some disk space or name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
