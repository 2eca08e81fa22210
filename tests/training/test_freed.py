"""What a run held is freed with it: a study trains hundreds of banks in one process."""

from __future__ import annotations

import gc
import weakref

import pytest
from tests.tiny import bank_on, examples, packed, tiny_llama
from torch import Tensor

from lowregret.models.load import with_full
from lowregret.specs import AdapterSpec, FullSpec, OptimSpec
from lowregret.training.optimizer import AdamW
from lowregret.training.step import train_step


def trained(method: str) -> list[weakref.ref[Tensor]]:
    """A weight, a master and a moment of a run that took one step and went out of scope."""
    module = tiny_llama()
    weight = module.get_parameter("model.layers.0.mlp.up_proj.weight")
    if method == "full":
        model, trainable = with_full(module, FullSpec(), slot="s")
    else:
        model, trainable = bank_on(module, {"s": AdapterSpec(rank=2)})
    optimizer = AdamW(OptimSpec(lr=1e-3), trainable.blocks("s"))
    train_step(model, [packed({"s": examples(3)})], {"s": optimizer}, factor=1.0)
    block = trainable.blocks("s")[0]
    # A block is a view made anew at each call; its base is the tensor that is kept.
    master = block.value._base if block.value._base is not None else block.value
    return [weakref.ref(weight), weakref.ref(master), weakref.ref(optimizer.moments[block.name].first)]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_nothing_of_a_run_outlives_it_without_the_collector(method: str) -> None:
    gc.collect()
    gc.disable()
    try:
        assert [kept() for kept in trained(method)] == [None, None, None]
    finally:
        gc.enable()
