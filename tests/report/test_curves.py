"""The series are the logs' own, and places, colours and ticks are readable by construction."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowregret.report.curves import (
    base_nll,
    held_out_curves,
    rate_curves,
    slot_styles,
    spread,
    step_ticks,
    training_curves,
)
from lowregret.report.findings import slot_findings
from lowregret.store import EvalRow, MetricRow


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=12).map(sorted), st.floats(0.01, 1))
def test_labels_keep_their_order_and_distance_and_their_centre(values: list[float], gap: float) -> None:
    places = spread(values, gap)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(places))
    assert sum(places) == pytest.approx(sum(values), abs=1e-9)
    if all(b - a >= gap for a, b in itertools.pairwise(values)):
        assert places == pytest.approx(values)


def test_colour_goes_with_rank_in_order_and_dash_with_learning_rate(make_run, sweep) -> None:
    styles = slot_styles(make_run(sweep).plan)
    by_rank = {slot.split("-")[0]: style.light for slot, style in styles.items()}
    assert list(by_rank) == ["r1", "r8", "r64"]
    assert len(set(by_rank.values())) == 3
    assert len({(style.light, style.dash) for style in styles.values()}) == len(styles)

    def brightness(color: str) -> float:
        red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2

    light = [brightness(color) for color in by_rank.values()]
    assert light == sorted(light)
    assert min(light) < 0.1
    # Contrast of at least 1.8 to 1 on a white page and 2.5 to 1 on a dark one (lines are thick and labelled).
    assert all(1.05 / (value + 0.05) > 1.8 for value in light)
    assert all((brightness(style.dark) + 0.05) / 0.058 > 2.5 for style in styles.values())


def test_held_out_series_are_the_logged_ones(make_run) -> None:
    run = make_run(also=("gsm8k",))
    curves = held_out_curves(run.read_evals(), run.plan)
    assert list(curves) == ["validation", "test", "gsm8k"]
    r8 = next(curve for curve in curves["test"] if curve.slot == "r8")
    logged = {row.step: row.nll for row in run.read_evals() if (row.slot, row.split) == ("r8", "test")}
    assert dict(zip(r8.steps, r8.values, strict=True)) == logged
    assert base_nll(run.read_evals(), "gsm8k") == pytest.approx(2.564)


def test_base_falls_back_on_a_fresh_adapter() -> None:
    fresh = EvalRow(step=0, slot="r8", split="test", nll=1.5, tokens=1)
    base = EvalRow(step=0, slot="base", split="test", nll=1.4, tokens=1)
    assert base_nll([fresh], "test") == 1.5
    assert base_nll([fresh, base], "test") == 1.4
    assert base_nll([fresh], "validation") is None


def test_smoothing_weighs_by_tokens_keeps_constants_and_skips_what_is_not_finite(make_run) -> None:
    plan = make_run().plan

    def curve(losses: list[float], tokens: list[int]) -> tuple[float, ...]:
        rows = [
            MetricRow(step=i, slot="r8", loss=loss, tokens=count, lr=1e-4)
            for i, (loss, count) in enumerate(zip(losses, tokens, strict=True), start=1)
        ]
        return training_curves(rows, plan)[0].values

    assert curve([1.5] * 50, [3] * 50) == pytest.approx([1.5] * 50)
    assert curve([2.0, float("nan"), 2.0], [1, 1, 1]) == pytest.approx((2.0, 2.0))
    heavy, light = curve([1.0, 2.0], [1, 99])[1], curve([1.0, 2.0], [99, 1])[1]
    assert 1.0 < light < heavy < 2.0
    # A window of a fifth of the steps: noise of alternating sign is mostly gone after a hundred.
    assert abs(curve([1.0, 3.0] * 100, [1] * 200)[-1] - 2.0) < 0.1


def test_rates_are_drawn_only_where_a_rank_has_several(make_run, sweep) -> None:
    assert rate_curves(slot_findings(make_run())) == ()
    run = make_run(sweep, name="sweep", diverged="r64-lr0.003")
    curves = {curve.label: curve for curve in rate_curves(slot_findings(run))}
    assert list(curves) == ["rank 1", "rank 8", "rank 64"]
    assert curves["rank 8"].rates == (1e-4, 3e-4, 1e-3, 3e-3)
    assert curves["rank 64"].missing == ((3e-3, "diverged"),)
    assert curves["rank 8"].missing == ()
    assert replace(curves["rank 8"], label="x").values == tuple(
        f.after for f in slot_findings(run) if f.slot.startswith("r8-")
    )


@pytest.mark.parametrize("last", [0, 1, 3, 99, 10**4, 10**6])
def test_ticks_are_few_and_inside(last: int) -> None:
    ticks = step_ticks(last)
    assert ticks[0] == 0
    assert max(ticks) <= last
    assert len(ticks) <= 12
