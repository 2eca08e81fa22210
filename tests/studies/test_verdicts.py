"""Tests and intervals against scipy and statsmodels, and what a verdict may and may not say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from lowregret.errors import SpecError
from lowregret.studies.finding import Finding
from lowregret.studies.margins import Margins
from lowregret.studies.students_t import Floats, quantile, seeds_needed, t_interval, upper_tail
from lowregret.studies.surface import Refused
from lowregret.studies.verdicts import Evidence, Weighed, holm, holm_adjusted, judged, weigh

MARGINS = Margins()
SAMPLES = st.lists(st.floats(-3, 3), min_size=2, max_size=12).map(np.array)


def finding(*parts: Evidence, withheld: tuple[str, str] | None = None) -> Finding:
    return judged("C0", "?", (), lambda: Weighed(parts=parts, used=(), withheld=withheld), model="micro")


@given(values=SAMPLES, low=st.floats(-2, 0), width=st.floats(0.1, 3))
def test_the_band_s_tests_are_those_of_statsmodels(values: Floats, low: float, width: float) -> None:
    if values.std() < 1e-6:
        return
    evidence = weigh("x", values, low, low + width, margins=MARGINS)
    described = DescrStatsW(values)
    assert evidence.p_inside == pytest.approx(described.ttost_mean(low, low + width)[0], abs=1e-9)
    assert evidence.interval == pytest.approx(described.tconfint_mean(alpha=0.1), abs=1e-9)
    open_band = weigh("x", values, low, math.inf, margins=MARGINS)
    larger, smaller = (stats.ttest_1samp(values, low, alternative=side)[1] for side in ("greater", "less"))
    assert open_band.p_inside == pytest.approx(larger, abs=1e-9)
    assert open_band.p_outside == pytest.approx(smaller, abs=1e-9)


@given(values=SAMPLES, low=st.floats(-2, 0), width=st.floats(0.0, 3))
def test_a_verdict_agrees_with_its_interval_and_never_with_both_sides(values: Floats, low: float, width: float) -> None:
    evidence = weigh("x", values, low, low + width, margins=MARGINS)
    verdict = finding(evidence).verdict
    start, end = evidence.interval
    if verdict == "supported":
        assert low - 1e-9 <= start <= end <= low + width + 1e-9
    if verdict == "contradicted":
        assert end <= low + 1e-9 or start >= low + width - 1e-9
    assert not (evidence.p_inside <= 0.05 and evidence.p_outside <= 0.05)


@given(values=SAMPLES, shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
def test_units_do_not_matter(values: Floats, shift: float, scale: float) -> None:
    if values.std() < 1e-3:
        return
    one = weigh("x", values, -1.0, 1.0, margins=MARGINS)
    other = weigh("x", scale * values + shift, shift - scale, shift + scale, margins=MARGINS)
    assert other.p_inside == pytest.approx(one.p_inside, abs=1e-6)
    assert other.p_outside == pytest.approx(one.p_outside, abs=1e-6)


def test_a_point_in_place_of_a_band_is_the_two_sided_test() -> None:
    values = np.array([0.2, 0.5, 0.9, 0.4])
    assert weigh("x", values, 0.0, 0.0, margins=MARGINS).p_outside == pytest.approx(stats.ttest_1samp(values, 0.0)[1])


def test_values_without_spread_decide() -> None:
    same = np.full(3, 0.5)
    assert finding(weigh("x", same, 0.0, 1.0, margins=MARGINS)).verdict == "supported"
    assert finding(weigh("x", same, 0.6, 1.0, margins=MARGINS)).verdict == "contradicted"
    assert finding(weigh("x", same, 0.5, 1.0, margins=MARGINS)).verdict == "inconclusive"


def test_all_parts_support_and_one_contradicts() -> None:
    rng = np.random.default_rng(0)
    inside, outside = (
        weigh(name, rng.normal(mean, 0.01, 5), -1, 1, margins=MARGINS) for name, mean in (("a", 0), ("b", 2))
    )
    vague = weigh("c", rng.normal(0, 3.0, 5), -1, 1, margins=MARGINS)
    assert finding(inside, inside).verdict == "supported"
    assert finding(inside, vague).verdict == "inconclusive"
    contradicted = finding(inside, vague, outside)
    assert contradicted.verdict == "contradicted"
    assert contradicted.quantity == "b"
    assert ("a: estimate", inside.estimate) in contradicted.details


def test_a_failed_control_withholds_support_only() -> None:
    rng = np.random.default_rng(0)
    inside, outside = (weigh("x", rng.normal(mean, 0.01, 5), -1, 1, margins=MARGINS) for mean in (0, 2))
    withheld = ("the control failed", "a better control")
    assert finding(inside, withheld=withheld).settles == "a better control"
    assert finding(inside, withheld=withheld).verdict == "inconclusive"
    assert finding(inside, withheld=withheld).p_value == pytest.approx(1.0)
    assert finding(outside, withheld=withheld).verdict == "contradicted"


def test_an_inconclusive_finding_says_how_many_seeds_would_settle_it() -> None:
    vague = finding(weigh("x", np.array([-0.6, 0.1, 0.5, 0.3]), -0.5, 0.5, margins=MARGINS))
    assert vague.verdict == "inconclusive"
    assert vague.settles.endswith("seeds, if estimate and spread stay as they are")
    on_margin = finding(weigh("x", np.array([0.4, 0.6, 0.5]), -0.5, 0.5, margins=MARGINS))
    assert "even 200 seeds" in on_margin.settles


def test_a_refusal_is_a_finding() -> None:
    def refuse() -> Weighed:
        raise Refused("nothing there", "something")

    refused = judged("C0", "?", (), refuse, model="micro")
    assert (refused.verdict, refused.reason, refused.settles) == ("inconclusive", "nothing there", "something")
    assert refused.p_value is None


@settings(max_examples=15)  # statsmodels takes 0.05 s for one
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    assert holm_adjusted(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-12)


def test_holm_withdraws_what_does_not_survive_and_leaves_refusals() -> None:
    rng = np.random.default_rng(0)
    strong = finding(weigh("x", rng.normal(0, 0.01, 5), -1, 1, margins=MARGINS))
    weak = finding(weigh("x", np.array([0.1, 0.3, 0.5, 0.1, 0.4]), 0.07, math.inf, margins=MARGINS))
    assert weak.verdict == "supported"
    assert weak.p_value is not None and weak.p_value > 0.0125
    vague = finding(weigh("x", rng.normal(0, 3.0, 5), -1, 1, margins=MARGINS))
    refused = judged("C0", "?", (), _refuse, model="")
    corrected = holm([strong, weak, vague, vague, refused])
    assert [one.verdict for one in corrected] == ["supported", *["inconclusive"] * 4]
    assert "Holm" in corrected[1].reason
    assert corrected[4] == refused
    assert holm([weak]) == (weak,)
    assert holm([]) == ()


def _refuse() -> Weighed:
    raise Refused("a", "b")


@given(values=SAMPLES, df=st.integers(1, 30))
def test_student_s_t_is_scipy_s(values: Floats, df: int) -> None:
    assert quantile(0.95, df) == pytest.approx(stats.t.ppf(0.95, df))
    assert upper_tail(float(values[0]), df) == pytest.approx(stats.t.sf(values[0], df))
    low, high = t_interval(values)
    assert low <= values.mean() <= high


@pytest.mark.parametrize("effect", [0.4, 0.6, 1.0, 2.0])
def test_the_number_of_seeds_is_that_of_the_noncentral_t_to_two(effect: float) -> None:
    exact = TTestPower().solve_power(effect_size=effect, alpha=0.05, power=0.8, alternative="larger")
    assert seeds_needed(effect, 1.0, level=0.05, power=0.8) == pytest.approx(float(exact), abs=2)


def test_no_number_of_seeds_for_no_distance() -> None:
    assert seeds_needed(0.0, 1.0, level=0.05, power=0.8) is None
    assert seeds_needed(0.01, 1.0, level=0.05, power=0.8) is None


@pytest.mark.parametrize(
    ("named", "message"),
    [([("parrity", 0.1)], "'parrity' is not known; give level"), ([("level", 0.0)], "must lie between 0 and 1")],
)
def test_bad_margins(named: list[tuple[str, float]], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Margins.of(named)
