"""What is written loads in peft and transformers with the same logits; a merge that loses the update is an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.peft_format import StoredAdapter, read_adapter, write_adapter
from lowregret.adapters.routing import Routing
from lowregret.batches import TokenizedExample
from lowregret.data.packing import pack
from lowregret.errors import ExportError
from lowregret.export.write import export_adapter, export_full, export_merged
from lowregret.models.causal_lm import CausalLM
from lowregret.models.load import load_module, with_bank
from lowregret.models.locate import ModelFolder
from lowregret.specs import AdapterSpec
from tiny_folder import tiny_model_folder

pytestmark = [
    # peft 0.21 asks transformers 5.23 by a name that it has deprecated, and warns of tied heads that we untie ourselves
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning"),
]

TOKENS = torch.arange(5, 25)
SPECS = {
    "all": AdapterSpec(rank=4),
    "attention": AdapterSpec(rank=3, alpha=6.0, targets=("attention",)),
    "one-layer": AdapterSpec(rank=2, targets=("layers.0.mlp.up_proj", "o_proj")),
    "unembed": AdapterSpec(rank=5, unembed=True),
}


def folder_of(path: Path, *, tied: bool) -> ModelFolder:
    return ModelFolder(path=tiny_model_folder(path, tied=tied), name=str(path), content_hash="")


def bank_with(model: ModelFolder, spec: AdapterSpec, *, scale: float = 0.02) -> tuple[CausalLM, AdapterBank]:
    lm, bank = with_bank(load_module(model, dtype=torch.float32, device=torch.device("cpu")))
    bank.join("s", spec)
    generator = torch.Generator().manual_seed(1)
    bank.weights["s"].b.copy_(torch.randn(bank.weights["s"].b.shape, generator=generator) * scale)
    bank.publish("s")
    return lm, bank


def stored(bank: AdapterBank) -> StoredAdapter:
    weights = bank.weights["s"]
    return StoredAdapter(rank=weights.spec.rank, alpha=weights.spec.alpha, a_of=weights.a_of, b_of=weights.b_of)


@torch.no_grad()
def logits_of(lm: CausalLM, slot: str | None) -> torch.Tensor:
    example = TokenizedExample(tokens=TOKENS.int().numpy(), completion=(TOKENS > 0).numpy())
    with lm.routed(Routing.from_lengths({slot: len(TOKENS)})):
        return lm.logits(lm.hidden(pack([("s", example)]))).float()


@torch.no_grad()
def transformers_logits(path: Path, dtype: torch.dtype) -> torch.Tensor:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model.eval()(TOKENS[None]).logits[0].float()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("which", SPECS)
def test_peft_loads_what_is_written_with_equal_logits(tmp_path: Path, which: str, tied: bool) -> None:
    model = folder_of(tmp_path / "model", tied=tied)
    lm, bank = bank_with(model, SPECS[which])
    write_adapter(bank, "s", tmp_path / "adapter", base_model=model.name)
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    loaded: Any = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = loaded(TOKENS[None]).logits[0]
    torch.testing.assert_close(logits_of(lm, "s"), expected, rtol=1e-4, atol=1e-5)
    assert (logits_of(lm, "s") - logits_of(lm, None)).abs().max() > 1e-2


def test_export_reads_back_and_keeps_the_masters(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model", tied=True)
    _, bank = bank_with(model, SPECS["all"])
    write_adapter(bank, "s", tmp_path / "run", base_model=model.name)
    export_adapter(tmp_path / "run", tmp_path / "out", model=model, dtype="fp32")
    again = read_adapter(tmp_path / "out")
    assert all(torch.equal(again.a_of[site], a) for site, a in bank.weights["s"].a_of.items())
    assert all(torch.equal(again.b_of[site], b) for site, b in bank.weights["s"].b_of.items())


@pytest.mark.parametrize("which", ["all", "unembed"])
def test_merged_equals_unmerged_in_fp32_and_transformers_loads_it(tmp_path: Path, which: str) -> None:
    model = folder_of(tmp_path / "model", tied=True)
    lm, bank = bank_with(model, SPECS[which])
    arguments: dict[str, Any] = {"examples": [], "tokens_per_microbatch": 512}
    export_merged(stored(bank), tmp_path / "m", model=model, dtype="fp32", rounding="nearest", **arguments)
    torch.testing.assert_close(
        transformers_logits(tmp_path / "m", torch.float32), logits_of(lm, "s"), rtol=1e-4, atol=1e-5
    )


def test_a_bf16_merge_reports_the_share_that_survives_and_refuses_what_does_not(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model", tied=False)
    _, bank = bank_with(model, SPECS["all"], scale=1e-5)
    arguments: dict[str, Any] = {"examples": [], "tokens_per_microbatch": 512, "model": model, "dtype": "bf16"}
    faithful = export_merged(stored(bank), tmp_path / "s", rounding="stochastic", **arguments)
    assert faithful.weights.share_of_update == pytest.approx(1.0, abs=0.15)
    assert transformers_logits(tmp_path / "s", torch.bfloat16).isfinite().all()
    with pytest.raises(ExportError, match=r"of the update: the rest is below the rounding; use --rounding stochastic"):
        export_merged(stored(bank), tmp_path / "n", rounding="nearest", **arguments)
    assert not (tmp_path / "n").exists()


def test_a_merge_that_changes_nothing_is_an_error_that_names_the_cure(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model", tied=True)
    _, bank = bank_with(model, SPECS["all"], scale=1e-9)
    arguments: dict[str, Any] = {"examples": [], "tokens_per_microbatch": 512}
    with pytest.raises(ExportError, match=r"changes no weight.*use --rounding stochastic or --dtype fp32"):
        export_merged(stored(bank), tmp_path / "m", model=model, dtype="bf16", rounding="nearest", **arguments)
    assert not (tmp_path / "m").exists()
    base = load_module(model, dtype=torch.float32, device=torch.device("cpu"))
    masters = {name: parameter.detach() * (1 + 2**-12) for name, parameter in base.named_parameters()}
    with pytest.raises(ExportError, match="changes no weight"):
        export_full(masters, tmp_path / "m", model=model, dtype="bf16", rounding="nearest", **arguments)


def test_an_adapter_without_an_update_has_no_fidelity(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model", tied=True)
    _, bank = bank_with(model, SPECS["all"], scale=0.0)
    example = TokenizedExample(tokens=TOKENS.int().numpy(), completion=(TOKENS > 0).numpy())
    arguments: dict[str, Any] = {"examples": [example] * 2, "tokens_per_microbatch": 512, "dtype": "bf16"}
    with pytest.raises(ExportError, match="changes the loss of no held-out document"):
        export_merged(stored(bank), tmp_path / "m", model=model, rounding="stochastic", **arguments)
    assert not (tmp_path / "m").exists()


def test_a_merge_keeps_weights_that_the_adapter_does_not_touch(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model", tied=False)
    _, bank = bank_with(model, SPECS["attention"])
    arguments: dict[str, Any] = {"examples": [], "tokens_per_microbatch": 512}
    export_merged(stored(bank), tmp_path / "m", model=model, dtype="bf16", rounding="stochastic", **arguments)
    cpu = torch.device("cpu")
    base = load_module(model, dtype=torch.bfloat16, device=cpu).state_dict()
    merged = load_module(replace(model, path=tmp_path / "m"), dtype=torch.bfloat16, device=cpu).state_dict()
    touched = {f"{site}.weight" for site in bank.weights["s"].a_of}
    assert all(torch.equal(base[name], merged[name]) == (name not in touched) for name in base)


def test_full_weights_are_written_and_read_back(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model", tied=True)
    module = load_module(model, dtype=torch.float32, device=torch.device("cpu"))
    masters = {name: p.detach() + 0.01 for name, p in module.named_parameters()}
    arguments: dict[str, Any] = {"examples": [], "tokens_per_microbatch": 512}
    export_full(masters, tmp_path / "m", model=model, dtype="fp32", rounding="nearest", **arguments)
    written = load_module(replace(model, path=tmp_path / "m"), dtype=torch.float32, device=torch.device("cpu"))
    assert all(torch.equal(p, masters[name]) for name, p in written.named_parameters())


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="adapter_config"):
        read_adapter(tmp_path)


def test_an_out_folder_with_files_is_refused(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model", tied=True)
    _, bank = bank_with(model, SPECS["all"])
    write_adapter(bank, "s", tmp_path / "run", base_model=model.name)
    with pytest.raises(ExportError, match="not empty"):
        export_adapter(tmp_path / "run", tmp_path / "run", model=model, dtype="fp32")
