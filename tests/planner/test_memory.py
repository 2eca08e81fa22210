"""The memory model: its activations against the tensors that a real forward saves, its parts against counts."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor

from lowregret.adapters.bank import AdapterBank
from lowregret.adapters.routing import Routing
from lowregret.batches import PackedBatch
from lowregret.kernels import native
from lowregret.kernels.native import BLOCK, Way
from lowregret.kernels.products import widens
from lowregret.models import dense_attention, fast_body, tiled_attention
from lowregret.models.causal_lm import CausalLM
from lowregret.models.kv_cache import KVCache
from lowregret.models.load import prepare_module, with_bank, with_full
from lowregret.planner import activations
from lowregret.planner.memory import (
    Cache,
    Constants,
    DType,
    MemoryQuestion,
    largest_micro_batch,
    largest_rank_that_fits,
    memory,
    needed_bytes,
)
from lowregret.planner.recommend import assumed_shape
from lowregret.planner.shapes import read_shape
from lowregret.sampling.sampler import Request, Sampler
from lowregret.specs import AdapterSpec, FullSpec, SamplingSpec
from planner.model_configs import PUBLISHED
from tiny import needs_compiler, randomise_b

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
}
LENGTHS = (25, 32, 27, 32)


def model_with(
    model_type: str, slot: AdapterSpec | FullSpec, dtype: torch.dtype, small: Mapping[str, int] = SMALL
) -> CausalLM:
    config = transformers.AutoConfig.for_model(model_type, **small, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    module = prepare_module(cast(Any, transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)))
    if isinstance(slot, FullSpec):
        return with_full(module, slot, slot="s")[0]
    model, bank = with_bank(module)
    bank.join("s", slot)
    return model


def saved_bytes(model: CausalLM) -> int:
    """Bytes of the storages that a forward keeps for its backward, without weights: autograd's and the layers' own."""
    length = sum(LENGTHS)
    batch = PackedBatch(
        tokens=torch.arange(length) % 128,
        positions=torch.cat([torch.arange(each) for each in LENGTHS]),
        targets=torch.zeros(length, dtype=torch.long),
        weights=torch.ones(length),
        segment_lengths=LENGTHS,
        segment_slots=("s",) * len(LENGTHS),
    )
    routing = Routing.from_lengths(batch.slot_lengths)
    with model.routed(routing):
        model.hidden(batch)  # what is made at the first use, and stays, is not counted
    held = {*storages(model.model.parameters()), *storages(model.model.buffers()), *storages(tensors())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.update(storages([tensor]))
        return tensor

    with model.routed(routing), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.hidden(batch)
    kept.update(storages(tensors()))
    kept.pop(hidden.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for at, storage in kept.items() if at not in held)


def tensors() -> list[torch.Tensor]:
    """All that are alive and known to Python: a layer of the fast path keeps its own outside autograd."""
    gc.collect()
    # By type: asking an instance of torch.distributed what it is warns. What torch.compile and the meta device left
    # behind in this process holds no memory.
    found = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    return [item for item in found if not isinstance(item, FakeTensor) and item.device.type != "meta"]


def storages(of: Iterable[torch.Tensor]) -> dict[int, torch.UntypedStorage]:
    found = (tensor.untyped_storage() for tensor in of)
    return {storage.data_ptr(): storage for storage in found if storage.nbytes()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "olmo2", "phi3", "phi"])
@pytest.mark.parametrize(
    "slot",
    [AdapterSpec(rank=32), AdapterSpec(rank=8, targets=("attention",)), FullSpec()],
    ids=["all", "attention", "full"],
)
def test_activations_are_what_a_forward_saves(
    model_type: str, slot: AdapterSpec | FullSpec, dtype: torch.dtype, tmp_path: Path
) -> None:
    hold_activations(model_type, slot, dtype, tmp_path, bf16_fast=not widens(torch.zeros(1, dtype=torch.bfloat16)))


@needs_compiler
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "olmo2"])
@pytest.mark.parametrize("slot", [AdapterSpec(rank=32), FullSpec()], ids=["all", "full"])
def test_attention_without_copies_is_counted_without_copies(
    model_type: str, slot: AdapterSpec | FullSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a processor that multiplies bf16: what is saved does not depend on how the kernel multiplies.
    monkeypatch.setattr(tiled_attention, "best_way", lambda: Way.PLAIN)
    hold_activations(model_type, slot, torch.bfloat16, tmp_path, bf16_fast=True, head_dim=32)


def hold_activations(
    model_type: str,
    slot: AdapterSpec | FullSpec,
    dtype: torch.dtype,
    folder: Path,
    *,
    bf16_fast: bool,
    head_dim: int = 16,
) -> None:
    """The planner's count is what a forward of this model saves, or up to a quarter more."""
    small = {**SMALL, "head_dim": head_dim, "hidden_size": 4 * head_dim}
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **small}))
    question = MemoryQuestion(
        slots=(slot,), dtype="fp32" if dtype == torch.float32 else "bf16", tokens=sum(LENGTHS), bf16_fast=bf16_fast
    )
    # This batch is packed by hand; the engine's own rounds up its rows, for which the prediction allows 1 in 16.
    predicted = memory(read_shape(folder), question, constants=Constants(passing=1.0))["activations"] * 16 / 17
    saved = saved_bytes(model_with(model_type, slot, dtype, small))
    assert 0.97 <= predicted / saved <= 1.25, predicted / saved


def test_the_planner_knows_what_takes_the_fast_path() -> None:
    assert activations.FAST_FAMILIES == fast_body.FAMILIES
    assert activations.DENSE_LONGEST == dense_attention.LONGEST
    assert activations.TILED_CHANNELS == BLOCK


MIB = 1 << 20
MEASURED = [
    (AdapterSpec(rank=16), "fp32", 1024, False, 2624),
    (AdapterSpec(rank=16), "fp32", 1024, True, 1786),
    (AdapterSpec(rank=64), "fp32", 2048, False, 3988),
    (AdapterSpec(rank=16), "bf16", 1024, False, 1733),
    (AdapterSpec(rank=1), "bf16", 2048, False, 2257),
    (FullSpec(), "fp32", 512, False, 3246),
    (FullSpec(), "fp32", 1024, True, 3173),
    (FullSpec(), "bf16", 512, False, 3425),
]
"""Resident peak in MiB of two steps on SmolLM2-135M-Instruct, one thread, documents of 256 tokens on average (rank 64:
512): benchmarks/peak.py."""


@pytest.mark.parametrize(("slot", "dtype", "tokens", "checkpointing", "peak"), MEASURED)
def test_the_prediction_bounds_the_measured_peak(
    slot: AdapterSpec | FullSpec, dtype: DType, tokens: int, checkpointing: bool, peak: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["SmolLM2-135M"]))
    question = MemoryQuestion(slots=(slot,), dtype=dtype, tokens=tokens, checkpointing=checkpointing)
    assert peak <= memory(read_shape(tmp_path), question)["total"] / MIB <= 1.25 * peak


SHAPE = assumed_shape(1024, 8)
QUESTION = MemoryQuestion(slots=(AdapterSpec(rank=16),), dtype="bf16", tokens=2048)


@given(rank=st.integers(1, 500), tokens=st.integers(1, 10**5), layers=st.integers(1, 40))
def test_memory_is_monotone(rank: int, tokens: int, layers: int) -> None:
    def total(rank: int, tokens: int, layers: int) -> int:
        question = MemoryQuestion(slots=(AdapterSpec(rank=rank),), dtype="bf16", tokens=tokens)
        return memory(assumed_shape(512, layers), question)["total"]

    here = total(rank, tokens, layers)
    assert here < total(rank + 1, tokens, layers)
    assert here < total(rank, tokens + 1, layers)
    assert here < total(rank, tokens, layers + 1)


def test_parts_are_counts() -> None:
    parts = memory(SHAPE, QUESTION)
    params = 16 * sum((m.d_in + m.d_out) * m.count for m in SHAPE.matrices if m.kind != "unembed")
    assert parts["adapters"] == parts["gradients"] == pytest.approx(4 * params * 1.05, abs=2)
    assert parts["optimizer"] == pytest.approx(8 * params * 1.05, abs=2)
    assert parts["weights"] == pytest.approx(2 * SHAPE.num_params * 1.05, abs=2)
    assert parts["total"] == sum(size for name, size in parts.items() if name != "total")
    full = memory(SHAPE, replace(QUESTION, slots=(FullSpec(),)))
    assert full["weights"] == 0
    assert full["full_masters"] + full["gradients"] + full["optimizer"] == pytest.approx(
        16 * SHAPE.num_params * 1.05, abs=4
    )
    assert full["working_copies"] == pytest.approx(2 * SHAPE.num_params * 1.05, abs=2)


def test_formats_and_checkpointing_save_what_they_should() -> None:
    base = memory(SHAPE, QUESTION)
    lean = memory(SHAPE, replace(QUESTION, checkpointing=True))
    assert lean["activations"] < base["activations"] / 3
    assert lean["weights"] == base["weights"]
    quantised = memory(SHAPE, replace(QUESTION, base="nf4"))
    assert quantised["weights"] < base["weights"]
    assert memory(SHAPE, replace(QUESTION, dtype="fp32"))["weights"] == pytest.approx(2 * base["weights"], abs=2)


def test_slots_share_one_base() -> None:
    one, two = memory(SHAPE, QUESTION), memory(SHAPE, replace(QUESTION, slots=(AdapterSpec(rank=16),) * 2))
    assert two["weights"] == one["weights"]
    assert two["adapters"] == pytest.approx(2 * one["adapters"], abs=2)
    assert two["total"] < 1.5 * one["total"]


def test_a_file_in_another_format_is_let_go_once_it_is_read() -> None:
    """Pages of a file in the base's own format stay mapped under the adapted matrices' copies; others only add where
    loading is the largest moment of the run."""
    adapted = 2 * sum(m.num_weights for m in SHAPE.matrices if m.kind != "unembed")
    for kept in ("BF16", None):
        assert memory(replace(SHAPE, stored=kept), QUESTION)["mapped_file"] == adapted
    wide = replace(SHAPE, stored="F32")
    assert memory(wide, replace(QUESTION, tokens=1 << 15))["mapped_file"] == 0
    large = replace(assumed_shape(4096, 32), stored="F32")
    parts = memory(large, QUESTION)
    assert parts["mapped_file"] > 0
    assert parts["total"] == (2 + 4) * large.num_params + parts["runtime"]


@given(memory_bytes=st.integers(1 << 29, 1 << 36))
def test_the_largest_that_fits_fits_and_one_more_does_not(memory_bytes: int) -> None:
    tokens = largest_micro_batch(SHAPE, QUESTION, memory_bytes=memory_bytes)
    if tokens:
        assert needed_bytes(memory(SHAPE, replace(QUESTION, tokens=tokens))) <= memory_bytes
    if tokens < 1 << 22:
        assert needed_bytes(memory(SHAPE, replace(QUESTION, tokens=tokens + 1))) > memory_bytes
    rank = largest_rank_that_fits(SHAPE, QUESTION, memory_bytes=memory_bytes, limit=256)
    if rank > 0:
        assert needed_bytes(memory(SHAPE, replace(QUESTION, slots=(AdapterSpec(rank=rank),)))) <= memory_bytes
    if rank < 256:
        assert needed_bytes(memory(SHAPE, replace(QUESTION, slots=(AdapterSpec(rank=rank + 1),)))) > memory_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_the_sampler_s_part_is_what_a_sampler_holds(
    model_type: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **SMALL}))
    model = model_with(model_type, AdapterSpec(rank=1), dtype)
    held: dict[int, int] = {}
    made = KVCache.of

    def of(cache: KVCache, layer: int, k_KTC: torch.Tensor, v_KTC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = made(cache, layer, k_KTC, v_KTC)
        held[layer] = sum(tensor.untyped_storage().nbytes() for tensor in both)
        return both

    packed = Counter[str]()
    pack = native.pack

    def packing(weight: torch.Tensor) -> torch.Tensor:
        packed["matrices"] += weight.numel() * weight.element_size()
        return pack(weight)

    monkeypatch.setattr(KVCache, "of", of)
    monkeypatch.setattr(native, "pack", packing)
    randomise_b(cast(AdapterBank, model.trainable), "s")
    sampler = Sampler(model, SamplingSpec(max_new_tokens=40, rows=5), stop_tokens=frozenset())
    sampler.sample([Request(slot="s", prompt=tuple(range(1, 31)), seeds=tuple(range(6)))])
    question = MemoryQuestion(
        slots=(AdapterSpec(rank=1),),
        dtype="fp32" if dtype == torch.float32 else "bf16",
        tokens=64,
        cache=Cache(rows=5, length=30 + 40),
    )
    exact = replace(Constants(), passing=1.0)
    parts = memory(read_shape(tmp_path), question, constants=exact)
    assert parts["kv_cache"] == sum(held.values())
    adapters = sum(weights.num_parameters for weights in cast(AdapterBank, model.trainable).weights.values())
    if packed:  # where there is a compiler
        assert parts["packed_weights"] == packed["matrices"] + 4 * adapters
    nothing = memory(read_shape(tmp_path), replace(question, cache=None))
    assert nothing["kv_cache"] == nothing["packed_weights"] == 0


def test_measuring_fidelity_holds_an_fp32_and_a_bf16_copy_beside_the_run() -> None:
    shape = assumed_shape(512, 4)
    question = MemoryQuestion(slots=(AdapterSpec(rank=8),), dtype="bf16", tokens=512)
    exact = Constants(held=1.0)
    plain, measuring = (memory(shape, one, constants=exact) for one in (question, replace(question, fidelity=True)))
    assert plain["fidelity"] == 0
    # The adapter's columns are folded into the fp32 copy too, at twice the bytes.
    assert measuring["fidelity"] == 6 * shape.num_params + 2 * plain["working_copies"]
    assert measuring["total"] == plain["total"] + measuring["fidelity"]
