"""Writes an adapter or a merged model, reads it back, compares logits, and only then says so."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
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
from lowregret.export.merge import MergeReport, Rounding, merge, rounded
from lowregret.models.causal_lm import CausalLM
from lowregret.models.load import DTYPES, cast_parameters, load_module, with_bank
from lowregret.models.locate import ModelFolder
from lowregret.training.evaluate import BASE, HeldOut, evaluate
from lowregret.training.measure import Fidelity, forward_fidelity

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

    >>> MergedModel(folder=Path("m"), weights=None, fidelity=None).fidelity is None
    True
    """

    folder: Path
    weights: MergeReport | None
    """None for full fine-tuning, which has no update to merge."""
    fidelity: Fidelity | None
    """Share of the loss drop that survives, where held-out examples were given."""


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
    examples: list[TokenizedExample],
    tokens_per_microbatch: int,
    notify: Callable[[str], None] = lambda _: None,
) -> MergedModel:
    """Merge, write, read back, compare logits, and measure the share of the loss drop that survives.

    Args:
        examples: held-out documents for the share; none: it is not measured.

    Raises:
        ExportError: the merge changes nothing, the file does not read back, or in fp32 merged and unmerged differ.
    """
    _refuse_full_folder(folder)
    cpu = torch.device("cpu")
    module = load_module(model, dtype=torch.float32, device=cpu)
    report = merge(module, stored, dtype=DTYPES[dtype], rounding=rounding)
    expected = _probe_logits(CausalLM(module), None)
    _save(module, folder, model)
    del module
    notify("reading back")
    merged = CausalLM(load_module(replace(model, path=folder), dtype=DTYPES[dtype], device=cpu))
    _require_equal(expected, _probe_logits(merged, None), 0.0, folder)
    lm, bank = with_bank(load_module(model, dtype=torch.float32, device=cpu))
    join_stored(bank, "adapter", stored)
    if dtype == "fp32":
        _require_equal(_probe_logits(lm, "adapter"), expected, 1e-4, folder)
    fidelity = None
    if len(examples) > 1:
        notify(f"measuring the surviving share on {len(examples)} held-out examples")
        base = CausalLM(load_module(model, dtype=DTYPES[dtype], device=cpu))
        fidelity = _surviving_share(lm, base, merged, examples, tokens_per_microbatch)
    return MergedModel(folder=folder, weights=report, fidelity=fidelity)


def export_full(
    masters: dict[str, Tensor], folder: Path, *, model: ModelFolder, dtype: str, rounding: Rounding
) -> MergedModel:
    """Write fully fine-tuned weights as a model folder, and read it back.

    Args:
        masters: fp32 weights by parameter name; flat or in shape. Weights not named are the base's.
    """
    _refuse_full_folder(folder)
    cpu = torch.device("cpu")
    module = cast_parameters(load_module(model, dtype=torch.float32, device=cpu), DTYPES[dtype])
    generator = torch.Generator().manual_seed(0)
    parameters = dict(module.named_parameters())
    for name, master in masters.items():
        target = parameters[name]
        target.data.copy_(rounded(master.view(target.shape), DTYPES[dtype], rounding, generator))
    expected = _probe_logits(CausalLM(module), None)
    _save(module, folder, model)
    merged = CausalLM(load_module(replace(model, path=folder), dtype=DTYPES[dtype], device=cpu))
    _require_equal(expected, _probe_logits(merged, None), 0.0, folder)
    return MergedModel(folder=folder, weights=None, fidelity=None)


def _surviving_share(
    lm: CausalLM, base: CausalLM, merged: CausalLM, examples: list[TokenizedExample], budget: int
) -> Fidelity:
    reference = evaluate(lm, examples, (BASE, "adapter"), budget)
    before: HeldOut = evaluate(base, examples, (BASE,), budget)[BASE]
    after: HeldOut = evaluate(merged, examples, (BASE,), budget)[BASE]
    return forward_fidelity(
        before_fp32=reference[BASE].by_example,
        after_fp32=reference["adapter"].by_example,
        before=before.by_example,
        after=after.by_example,
        tokens=[example.num_completion_tokens for example in examples],
    )


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
