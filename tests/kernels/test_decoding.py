"""The compiled pieces of a decoding step compute their formulas, in both formats and at every odd size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowregret.adapters.routing import Routing
from lowregret.kernels import native
from lowregret.models.attention import Head
from lowregret.models.kv_cache import DecodingStep, KVCache
from lowregret.models.packed import packed_product_reference
from tiny import needs_compiler

pytestmark = needs_compiler

FORMATS = [torch.float32, torch.bfloat16]


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, expected: Tensor) -> None:
    """One rounding apart where the sums lie on either side of a tie; the fp32 sums differ by their order alone."""
    tolerance = 2.0**-7 if found.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=1e-4)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("rows", "depth", "outputs"),
    [(1, 8, 32), (7, 33, 50), (8, 576, 192), (19, 65, 31), (3, 1, 1), (16, 64, 70), (70, 96, 32)],
)
def test_a_product_of_few_rows(rows: int, depth: int, outputs: int, biased: bool, dtype: torch.dtype) -> None:
    weight = random(outputs, depth + 3, seed=0, dtype=dtype)[:, :depth]  # rows of W lie apart, as in a folded matrix
    x = random(rows, depth + 5, seed=1, dtype=dtype)[:, :depth]
    bias = random(outputs, seed=2, dtype=dtype) if biased else None
    found = torch.full((rows, outputs + 2), 7.0, dtype=dtype)
    native.product(x, native.pack(weight), found[:, :outputs], bias_F=bias)
    close(found[:, :outputs], packed_product_reference(x, weight, {}, (), bias))
    assert bool((found[:, outputs:] == 7.0).all())  # nothing behind the last column is touched


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("depth", [64, 37])
def test_each_row_meets_its_own_adapter_in_the_accumulator(depth: int, dtype: torch.dtype) -> None:
    outputs, ranks = 70, {"a": 5, "b": 16}
    adapters = {
        slot: (random(rank, depth, seed=rank, dtype=torch.float32), random(outputs, rank, seed=1, dtype=torch.float32))
        for slot, rank in ranks.items()
    }
    spans = Routing.from_lengths({"a": 3, None: 2, "b": 9}).spans
    up = {slot: b.T.contiguous() for slot, (_, b) in adapters.items()}
    table = torch.tensor([(adapters[s][0].data_ptr(), up[s].data_ptr(), ranks[s]) for s in ranks], dtype=torch.int64)
    blocks = torch.tensor([(0, 2, 0), (2, 3, 0), (3, 5, -1), (5, 14, 1)], dtype=torch.int64)
    weight, x = random(outputs, depth, seed=3, dtype=dtype), random(14, depth, seed=4, dtype=dtype)
    found = torch.empty(14, outputs, dtype=dtype)
    native.product(x, native.pack(weight), found, blocks=blocks, adapters=table)
    expected = packed_product_reference(x, weight, adapters, spans)
    close(found, expected)
    assert bool((found[:3] - packed_product_reference(x, weight, {}, spans)[:3]).abs().max() > 1)


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_product_keeps_a_nan_in_its_row(dtype: torch.dtype) -> None:
    x = torch.ones(3, 8, dtype=dtype)
    x[1, 4] = float("nan")
    found = torch.empty(3, 40, dtype=dtype)
    native.product(x, native.pack(torch.ones(40, 8, dtype=dtype)), found)
    assert bool(found[1].isnan().all())
    assert bool((found[[0, 2]] == 8.0).all())


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("window", [None, 4, 100])
@pytest.mark.parametrize("channels", [8, 20, 64, 96])
def test_a_decoding_step_attends_to_each_rows_own_past(
    channels: int, window: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, kv_heads, order, held = 6, 2, [2, 0, 3, 1], [5, 0, 31, 9]
    head = Head(layer=0, scaling=0.3, window=window)
    past = random(2, 4, kv_heads, 32, channels, seed=0, dtype=dtype)
    q, k, v = (random(4, n, channels, seed=n + 1, dtype=dtype).transpose(0, 1) for n in (heads, kv_heads, kv_heads))
    found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for how in ("compiled", "torch in fp32"):
        wide = dtype if how == "compiled" else torch.float32
        cache = KVCache(rows=4, length=32)
        keys, values = cache.of(0, k.to(wide), v.to(wide))
        for row, length in zip(order, held, strict=True):
            keys[row, :, :length], values[row, :, :length] = past[0, row, :, :length], past[1, row, :, :length]
        monkeypatch.setattr(native, "serves", lambda _, how=how: how == "compiled")
        step = DecodingStep.of(cache, rows=order, held=held, device=torch.device("cpu"))
        found[how] = (step.attend(q.to(wide), k.to(wide), v.to(wide), head), keys, values)
    mine, expected = found["compiled"], found["torch in fp32"]
    close(mine[0], expected[0])
    for cached, other in zip(mine[1:], expected[1:], strict=True):
        assert torch.equal(cached.float(), other)
    assert mine[0].shape == (heads, 4, channels)


@pytest.mark.skipif(native.Way.TILES in native.ways(), reason="tiles of 32 rows sum in another order")
@pytest.mark.parametrize("dtype", FORMATS)
def test_a_row_sums_alike_among_any_number(dtype: torch.dtype) -> None:
    weight, x = random(70, 96, seed=0, dtype=dtype), random(40, 96, seed=1, dtype=dtype)
    down, up = random(5, 96, seed=2, dtype=torch.float32), random(5, 70, seed=3, dtype=torch.float32)
    table = torch.tensor([(down.data_ptr(), up.data_ptr(), 5)], dtype=torch.int64)
    packed, found = native.pack(weight), torch.empty(40, 70, dtype=dtype)
    native.product(x, packed, found, blocks=torch.tensor([(0, 40, 0)]), adapters=table)
    for number in (1, 2, 3, 7, 8):
        few = torch.empty(number, 70, dtype=dtype)
        native.product(x[:number], packed, few, blocks=torch.tensor([(0, number, 0)]), adapters=table)
        assert torch.equal(few, found[:number])
