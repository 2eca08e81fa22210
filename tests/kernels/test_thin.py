"""An adapter's thin products for all slots at once equal the loop over slots, in each way that this processor has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowregret.adapters import thin
from lowregret.adapters.grouped import Columns, padded_columns
from lowregret.adapters.routing import Routing, Span
from lowregret.kernels.native import Way, ways
from tiny import needs_compiler

pytestmark = needs_compiler

D_IN, D_OUT = 64, 96
RANKS = {"a": 5, "b": 16, "c": 40}
ROWS: dict[str | None, int] = {"a": 3, None: 4, "b": 300, "c": 33}


@pytest.fixture(params=list(Way))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    if request.param not in ways():
        pytest.skip("this processor does not multiply that way")
    monkeypatch.setattr(thin, "_way", lambda: request.param)
    return request.param


def drawn() -> tuple[Tensor, Tensor, Tensor, dict[str, Columns], tuple[Span, ...]]:
    """The folded matrix, x and dy (rows apart, as behind them there is room), columns and spans."""
    generator = torch.Generator().manual_seed(0)
    columns, start = {}, 0
    for slot, rank in RANKS.items():
        columns[slot] = Columns(start=start, rank=rank, scaling=0.5 + start)
        start += rank
    width = padded_columns(start)
    folded = torch.randn(D_OUT + width, D_IN + width, generator=generator).bfloat16()
    folded[D_OUT + start :], folded[:, D_IN + start :], folded[D_OUT:, D_IN:] = 0, 0, 0
    spans = Routing.from_lengths(ROWS).spans
    x_TD, dy_TF = (torch.randn(spans[-1].stop, n, generator=generator).bfloat16() for n in (D_IN, D_OUT))
    return folded, x_TD, dy_TF, columns, spans


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert float((found.double() - expected).norm() / expected.norm()) < tolerance


def test_outputs_and_gradients_equal_the_loop(way: Way) -> None:
    folded, x_TD, dy_TF, columns, spans = drawn()
    gradients = {s: (torch.full((r, D_IN), 2.0), torch.full((D_OUT, r), 3.0)) for s, r in RANKS.items()}
    y_TF, u_TR = thin.thin_linear(x_TD, folded, spans, columns, D_OUT)
    dx_TD, du_TR = thin.thin_linear_backward(dy_TF, folded, spans, columns, D_IN)
    thin.accumulate_thin_gradients(x_TD, dy_TF, u_TR, du_TR, spans, columns, gradients)
    wide = folded.double()
    for span in spans:
        rows = slice(span.start, span.stop)
        x, dy = x_TD[rows].double(), dy_TF[rows].double()
        y, dx = x @ wide[:D_OUT, :D_IN].T, dy @ wide[:D_OUT, :D_IN]
        if span.slot is not None:
            at = columns[span.slot]
            a, b = wide[D_OUT + at.start : D_OUT + at.stop, :D_IN], wide[:D_OUT, D_IN + at.start : D_IN + at.stop]
            u, du = x @ a.T, dy @ b
            close(u_TR[rows, : at.rank], u, 3e-3)  # rounded to 8 bits once
            close(du_TR[rows, : at.rank], du, 3e-3)
            assert not u_TR[rows, at.rank :].any()
            y, dx = y + u @ b.T, dx + du @ a
            # From the u that was rounded, the gradients are sums in fp32.
            exact_a = du_TR[rows, : at.rank].double().T @ x
            exact_b = dy.T @ u_TR[rows, : at.rank].double() * at.scaling
            close(gradients[span.slot][0] - 2.0, exact_a, 1e-5)
            close(gradients[span.slot][1] - 3.0, exact_b, 1e-5)
        close(y_TF[rows], y, 5e-3)
        close(dx_TD[rows], dx, 5e-3)


def test_a_nan_stays_with_its_slot(way: Way) -> None:
    folded, x_TD, dy_TF, columns, spans = drawn()
    of_b = next(span for span in spans if span.slot == "b")
    x_TD[of_b.start : of_b.stop], dy_TF[of_b.start : of_b.stop] = float("nan"), float("inf")
    gradients = {s: (torch.zeros(r, D_IN), torch.zeros(D_OUT, r)) for s, r in RANKS.items()}
    y_TF, u_TR = thin.thin_linear(x_TD, folded, spans, columns, D_OUT)
    dx_TD, du_TR = thin.thin_linear_backward(dy_TF, folded, spans, columns, D_IN)
    thin.accumulate_thin_gradients(x_TD, dy_TF, u_TR, du_TR, spans, columns, gradients)
    others = [row for span in spans if span.slot != "b" for row in range(span.start, span.stop)]
    assert bool(y_TF[others].isfinite().all() and dx_TD[others].isfinite().all())
    assert not y_TF[of_b.start : of_b.stop].isfinite().any()
    for slot in ("a", "c"):
        assert all(bool(gradient.isfinite().all() and gradient.any()) for gradient in gradients[slot])
    assert not gradients["b"][0].isfinite().any()


def test_an_expanded_gradient_and_a_slot_without_rows(way: Way) -> None:
    folded, x_TD, _, columns, _ = drawn()
    spans = Routing.from_lengths({"a": 0, "b": 40, "c": 0}).spans
    x_TD, dy_TF = x_TD[:40], torch.ones((), dtype=torch.bfloat16).expand(40, D_OUT)
    gradients = {s: (torch.zeros(r, D_IN), torch.zeros(D_OUT, r)) for s, r in RANKS.items()}
    _, u_TR = thin.thin_linear(x_TD, folded, spans, columns, D_OUT)
    _, du_TR = thin.thin_linear_backward(dy_TF, folded, spans, columns, D_IN)
    thin.accumulate_thin_gradients(x_TD, dy_TF, u_TR, du_TR, spans, columns, gradients)
    close(gradients["b"][1], columns["b"].scaling * u_TR[:, :16].double().sum(0).expand(D_OUT, 16), 1e-5)
    assert not any(gradient.any() for slot in ("a", "c") for gradient in gradients[slot])
    wide = {s: (a.double(), b.double()) for s, (a, b) in gradients.items()}
    with pytest.raises(TypeError, match="not fp32"):
        thin.accumulate_thin_gradients(x_TD, dy_TF, u_TR, du_TR, spans, columns, wide)
