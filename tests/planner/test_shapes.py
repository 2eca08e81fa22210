"""Shapes read from config.json equal the built modules; headers serve where the family is unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
import torch
import transformers
from torch import nn

from lowregret.adapters.inject import linear_kinds, select_sites
from lowregret.errors import SpecError
from lowregret.planner.capacity import adapter_params, adapter_params_by_kind
from lowregret.planner.shapes import read_shape
from lowregret.planner.targets import select
from lowregret.specs.shape import ModelShape
from planner.model_configs import PUBLISHED, Config


def write_config(folder: Path, config: Config) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def shape_of(folder: Path, name: str) -> ModelShape:
    return read_shape(write_config(folder, PUBLISHED[name]))


def build(config: Config, device: str = "meta") -> nn.Module:
    values = dict(config)
    made = transformers.AutoConfig.for_model(cast(str, values.pop("model_type")), **values)
    with torch.device(device):
        return cast(nn.Module, transformers.AutoModelForCausalLM.from_config(made))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_matrix_and_every_parameter_is_the_built_module_s(name: str, tmp_path: Path) -> None:
    shape = shape_of(tmp_path, name)
    module = build(PUBLISHED[name])
    built = {key: tuple(p.shape) for key, p in module.named_parameters() if p.ndim > 1 and "embed" not in key}
    counted: dict[str, tuple[int, ...]] = {}
    for matrix in shape.matrices:
        for layer in matrix.layers or (0,):
            path = matrix.path.format(layer=layer)
            if matrix.kind == "expert":
                # gpt-oss stores its experts transposed.
                stored = built[path]
                assert set(stored[1:]) == {matrix.d_out, matrix.d_in}
                counted[path] = (matrix.experts, *stored[1:])
            elif not (matrix.kind == "unembed" and shape.tied):
                counted[path + ".weight"] = (matrix.d_out, matrix.d_in)
    biases = {key for key, size in built.items() if key.endswith("_bias")}
    assert counted == {key: size for key, size in built.items() if key not in biases}
    assert shape.num_params == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "mlp", "attention", "head"),
    [
        ("Llama-3.1-8B", 1_769_472, 851_968, 132_352),
        ("Qwen3-8B", 1_769_472, 958_464, 156_032),
        ("Llama-3.2-1B", 491_520, 212_992, 130_304),
    ],
)
def test_known_adapter_parameters_per_rank(name: str, mlp: int, attention: int, head: int, tmp_path: Path) -> None:
    matrices = select(shape_of(tmp_path, name), ("all",), unembed=True)
    assert adapter_params_by_kind(matrices, 1) == {"attention": attention, "mlp": mlp, "unembed": head}
    assert adapter_params(matrices, 64) == 64 * (mlp + attention + head)


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "Qwen3-8B", "Phi-2", "Phi-3-mini", "Gemma-2-2B", "OLMo-2-7B"])
@pytest.mark.parametrize(
    ("targets", "unembed"),
    [
        (("all",), True),
        (("attention",), False),
        (("mlp",), True),
        (("o_proj", "dense"), False),
        (("layers.1.mlp",), True),
    ],
)
def test_targets_select_what_the_bank_adapts(
    name: str, targets: tuple[str, ...], unembed: bool, tmp_path: Path
) -> None:
    config = {**PUBLISHED[name], "num_hidden_layers": 2}
    shape = read_shape(write_config(tmp_path, config))
    kinds = linear_kinds(build(config), "lm_head")
    module_of = {key: module for key, module in build(config).named_modules() if isinstance(module, nn.Linear)}
    known = {site.rpartition(".")[2] for site in kinds}
    wanted = tuple(target for target in targets if target in {"all", "attention", "mlp"} or target in known)
    if not wanted:
        with pytest.raises(SpecError, match="matches no linear layer"):
            select(shape, targets, unembed=unembed)
        return
    sites = select_sites(kinds, wanted, unembed=unembed)
    chosen = select(shape, wanted, unembed=unembed)
    paths = [m.path.format(layer=layer) for m in chosen for layer in m.layers or (0,)]
    assert sorted(paths) == sorted(sites)
    rank_sum = sum(module_of[site].in_features + module_of[site].out_features for site in sites)
    assert adapter_params(chosen, 3) == 3 * rank_sum


def test_a_target_in_one_layer_counts_once(tmp_path: Path) -> None:
    (matrix,) = select(shape_of(tmp_path, "SmolLM2-135M"), ("layers.7.mlp.up_proj",), unembed=False)
    assert (matrix.layers, matrix.adapter_params(2)) == ((7,), 2 * (576 + 1536))


def test_an_expert_s_rank_is_the_rank_over_the_active_experts(tmp_path: Path) -> None:
    shape = shape_of(tmp_path, "Qwen3-30B-A3B")
    by_kind = adapter_params_by_kind(select(shape, ("all",), unembed=False), 16)
    assert by_kind["expert"] == 48 * 128 * 2 * ((2048 + 2 * 768) + (768 + 2048))
    assert adapter_params_by_kind(select(shape, ("mlp",), unembed=False), 1) == {"expert": by_kind["expert"] // 2}


@pytest.mark.parametrize("known", [True, False])
def test_headers_give_the_counts_of_an_unknown_family(known: bool, tmp_path: Path) -> None:
    config: Config = {
        "model_type": "llama" if known else "gpt_neox",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    module = build(config, "cpu")
    cast(transformers.PreTrainedModel, module).save_pretrained(tmp_path)
    if known:  # The same folder under a name that nobody knows.
        text = (tmp_path / "config.json").read_text().replace('"llama"', '"nobody_s"')
        (tmp_path / "config.json").write_text(text)
    shape = read_shape(tmp_path)
    assert shape.source == "safetensors headers"
    assert shape.num_params == sum(p.numel() for p in module.parameters())
    sites = select_sites(linear_kinds(module, "lm_head"), ("all",), unembed=False)
    linears = dict(module.named_modules())
    wanted = sum(5 * sum(cast(nn.Linear, linears[site]).weight.shape) for site in sites)
    assert adapter_params(select(shape, ("all",), unembed=False), 5) == wanted


def test_a_config_that_contradicts_the_weights_is_refused(tmp_path: Path) -> None:
    config = {**PUBLISHED["SmolLM2-135M"], "hidden_size": 36, "num_hidden_layers": 1, "intermediate_size": 48}
    cast(transformers.PreTrainedModel, build(config, "cpu")).save_pretrained(tmp_path)
    assert read_shape(tmp_path).hidden_size == 36
    write_config(tmp_path, {**config, "intermediate_size": 64})
    with pytest.raises(SpecError, match=r"says 64 x 36 for model\.layers\.0\.mlp\.gate_proj\.weight"):
        read_shape(tmp_path)


def test_the_text_part_of_a_multimodal_config_counts(tmp_path: Path) -> None:
    text = {**PUBLISHED["Gemma-3-1B"]}
    assert read_shape(write_config(tmp_path, {"model_type": "gemma3", "text_config": text})).hidden_size == 1152


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, "lacks `hidden_size`"),
        ({**PUBLISHED["Llama-3.1-8B"], "vocab_size": None}, "lacks `vocab_size`"),
        ({**PUBLISHED["Llama-3.1-8B"], "hidden_size": "wide"}, "should be a positive integer"),
        ({**PUBLISHED["Llama-3.1-8B"], "hidden_size": 0}, "should be a positive integer"),
        ({**PUBLISHED["Llama-3.1-8B"], "tie_word_embeddings": "yes"}, "should be true or false"),
        ({"hidden_size": 4}, "has no `model_type`"),
        ({**PUBLISHED["Llama-3.1-8B"], "model_type": "martian"}, "architecture 'martian' is not known"),
    ],
)
def test_a_bad_config_is_one_clear_line(config: Config, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message) as error:
        read_shape(write_config(tmp_path, config))
    assert "\n" not in str(error.value)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "can't be read"), ("{", "not JSON"), ("[1]", "no JSON object")],
    ids=["none", "torn", "list"],
)
def test_a_config_that_is_no_config(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(SpecError, match=message):
        read_shape(tmp_path)


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    write_config(tmp_path, PUBLISHED["Llama-3.1-8B"])
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(SpecError, match="is no safetensors file"):
        read_shape(tmp_path)
