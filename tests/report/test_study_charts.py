"""Every protocol's figures show what its cells hold: estimates as the findings have them, nothing that is missing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lowregret.report.accuracy_table import accuracy_table
from lowregret.report.fidelity_table import fidelity_table
from lowregret.report.protocols.asked import Asked, arm_names, arm_styles
from lowregret.report.protocols.chart import Chart, Series
from lowregret.report.protocols.information import first_pass_bits
from lowregret.report.study_charts import FIGURES, charts_of
from lowregret.specs import QuestionSpec
from lowregret.store.study import Dynamics
from lowregret.studies.best_rate import log_best_rates
from lowregret.studies.claims import c3, c4, c9, c9b, c10, c13, c13b, c13c, c13d, certify
from lowregret.studies.questions import PROTOCOLS
from lowregret.studies.reading import outcomes_of
from lowregret.studies.simulate import Truth
from lowregret.studies.students_t import t_interval
from lowregret.studies.surface import surfaces
from report.simulated import (
    capacity_question,
    claim_question,
    every_question,
    fidelity_question,
    question,
    rank_question,
    ratio_question,
    rl_layers_question,
    rl_question,
    write_study,
)
from studies.cells import cells, full, lora


def charts(asked: tuple[QuestionSpec, list], **fields: float) -> dict[str, Chart]:
    return {chart.key.split("-", 1)[1]: chart for chart in charts_of(0, asked[0], asked[1], **fields)}


def line(chart: Chart, name: str) -> Series:
    return next(series for series in chart.series if series.name == name)


def test_every_protocol_has_its_figures_and_their_numbers_are_finite() -> None:
    assert set(FIGURES) == set(PROTOCOLS)
    for asked, outcomes in every_question():
        for chart in charts_of(0, asked, outcomes):
            assert chart.series
            assert len({series.name for series in chart.series}) == len(chart.series), chart.key
            assert len(chart.series) <= 12, chart.key
            for series in chart.series:
                values = np.array([series.x, series.low, series.y, series.high])
                assert np.isfinite(values).all(), chart.key
                assert (values[1] <= values[2] + 1e-12).all()
                assert (values[2] <= values[3] + 1e-12).all()
                assert not chart.y_log or (values[1] > 0).all(), chart.key
                assert len(series.note) == len(series.x)
        assert charts_of(0, asked, ()) == ()


def test_u_curves_mark_the_best_rate_with_its_interval_below_the_curves() -> None:
    asked = rank_question()
    chart = charts(asked)["rank-rates"]
    for arm, surface in surfaces(asked[1]).items():
        mark = next(mark for mark in chart.marks if mark.name == arm.label)
        logs = log_best_rates(surface)
        assert (mark.low, mark.high) == pytest.approx(tuple(map(math.exp, t_interval(logs))))
        assert mark.x == pytest.approx(math.exp(logs.mean()))
    assert max(mark.y for mark in chart.marks) < min(min(series.low) for series in chart.series)
    assert len({mark.y for mark in chart.marks}) == len(chart.marks) == 5


def test_u_curves_say_where_there_is_no_best_rate_and_leave_out_cells_without_a_final_loss() -> None:
    asked, outcomes = rank_question()
    chart = charts((asked, outcomes))["rank-rates"]
    counts = dict(zip(line(chart, "r1").x, line(chart, "r1").note, strict=True))
    ended = sorted(o.lr for o in outcomes if o.diverged)
    assert [counts[rate] for rate in ended] == ["2 seeds", "2 seeds"]
    edge = [*cells(lora(4), lambda rate, seed: 1 / rate), *cells(full(), lambda rate, seed: math.log(rate / 1e-3) ** 2)]
    chart = charts((asked, edge))["rank-rates"]
    assert [mark.name for mark in chart.marks] == ["full"]
    assert "No LR*: the minimum of r4 lies on its highest learning rate." in chart.caption


def test_one_rate_draws_no_u_curve_and_one_seed_no_interval() -> None:
    asked, outcomes = rank_question()
    one_rate = [o for o in outcomes if o.lr == next(own.lr for own in outcomes if own.arm == o.arm)]
    assert "rank-rates" not in charts((asked, one_rate))
    chart = charts((asked, [o for o in outcomes if o.seed == 1]))["rank-rates"]
    assert all(mark.low == mark.x == mark.high for mark in chart.marks)


def test_best_rate_against_rank_has_a_line_a_family_and_full_fine_tuning_as_a_level() -> None:
    asked, outcomes = claim_question("learning-rate", "C3")
    outcomes += cells(replace(full(), steps=1000), lambda rate, seed: (math.log(rate / (1e-3 + 1e-5 * seed))) ** 2)
    chart = charts((asked, outcomes))["learning-rate-best-rate"]
    assert [series.name for series in chart.series] == ["alpha 32", "alpha = r", "full"]
    assert chart.x_log and chart.y_log
    free, tied, level = chart.series
    assert (free.x, tied.x) == ((4.0, 16.0, 64.0), (4.0, 16.0, 64.0))
    assert level.x == (4.0, 64.0)
    assert level.y[0] == level.y[1] == pytest.approx(1e-3, rel=0.05)
    slope = np.polyfit(np.log(tied.x), np.log(tied.y), 1)[0]
    assert slope == pytest.approx(dict(c3(outcomes).details)["slope with alpha = r: estimate"], abs=0.02)


def test_regret_is_the_finding_s_and_its_capacity_line_is_where_two_bits_a_parameter_meet_the_data() -> None:
    asked, outcomes = rank_question()
    chart = charts((asked, outcomes), first_pass_bits=2 * 1000 * 3.0)["rank-regret"]
    (regret,) = chart.series
    assert regret.x == (1.0, 4.0, 16.0, 64.0)
    assert regret.y[-1] == pytest.approx(certify(outcomes).estimate)
    parity, capacity = chart.levels
    assert (parity.axis, parity.low, parity.high) == ("y", -0.005, 0.005)
    assert (capacity.axis, capacity.low, capacity.high) == ("x", 3.0, 3.0)
    wide = charts((replace(asked, margins=(("parity", 0.02),)), outcomes))["rank-regret"]
    assert [(level.axis, level.high) for level in wide.levels] == [("y", 0.02)]
    assert "No capacity line" in wide.caption
    far = charts((asked, outcomes), first_pass_bits=1e9)["rank-regret"]
    assert len(far.levels) == 1
    assert "outside the figure" in far.caption


def test_information_is_the_log_loss_of_a_first_pass_and_is_not_guessed(tmp_path, make_run) -> None:
    once = cells(lora(4, steps=200), lambda rate, seed: 2.0, rates=(1e-3,))
    twice = cells(lora(4, steps=400), lambda rate, seed: 2.0, rates=(1e-3,))
    study = write_study(tmp_path / "study", [(question("rank"), once), (question("rank"), twice)])
    # Without its banks nobody knows how often an example was seen.
    assert first_pass_bits(study, outcomes_of(study, 0)) is None
    make_run(name="study/banks/b1")  # of 1,800 examples
    assert first_pass_bits(study, outcomes_of(study, 0)) == pytest.approx(1000 / math.log(2))
    assert first_pass_bits(study, outcomes_of(study, 1)) is None
    assert first_pass_bits(study, []) is None


def test_the_gap_has_the_largest_batch_in_its_control_too_and_curves_leave_the_control_out() -> None:
    asked = claim_question("batch-size", "C8", truth=Truth(batch_growth=0.01, equal_growth=0.02), seeds=3)
    drawn = charts(asked)
    gap = drawn["batch-size-gap"]
    for rank in (4, 16, 64):
        main, control = line(gap, f"r{rank}"), line(gap, f"r{rank} equal steps")
        assert main.x == control.x == (8.0, 32.0, 128.0)
        assert main.y[-1] == control.y[-1]
    names = [series.name for series in drawn["batch-size-curves"].series]
    assert len(names) == 12
    assert not any("equal" in name for name in names)
    assert "Of 20 arms 12 are drawn" in drawn["batch-size-curves"].caption


def test_layers_are_compared_by_parameters() -> None:
    chart = charts(claim_question("layers", "C7", truth=Truth(attention_gap=0.05)))["layers-parameters"]
    assert {series.name for series in chart.series} == {"attention", "mlp", "all"}
    assert line(chart, "attention").y[0] > line(chart, "mlp").y[0] + 0.03
    assert len({series.style.light for series in chart.series}) == 3
    assert len({series.x for series in chart.series}) == 3  # a little apart, at equal parameters


def test_early_drops_are_relative_to_the_largest_rank() -> None:
    chart = charts(claim_question("early", "C2", truth=Truth(early_difference=-0.1)))["early-drops"]
    assert [series.name for series in chart.series] == ["r4", "r16"]
    assert line(chart, "r4").y[-1] == pytest.approx(-10, abs=1)
    assert [(level.low, level.high) for level in chart.levels] == [(-5.0, 5.0)]
    assert "rank 64" in chart.title


def test_norms_and_kernels_are_those_that_were_logged() -> None:
    asked, outcomes = claim_question("dynamics", "C11", seeds=3)
    drawn = charts((asked, outcomes))
    norms = drawn["dynamics-norms"]
    assert {series.name for series in norms.series} == {f"r{rank}, {one}" for rank in (4, 16, 64) for one in "AB"}
    assert 0.5 not in line(norms, "r4, B").x  # zero has no place on a logarithmic axis
    assert 0.5 in line(norms, "r4, A").x
    error, expected = drawn["dynamics-kernel-error"].series
    assert expected.y[-1] / expected.y[0] == pytest.approx((64 / 4) ** -0.5)
    assert error.y[0] == pytest.approx(expected.y[0])
    logged = [o.dynamics.kernel_error for o in outcomes if o.arm.rank == 64 and isinstance(o.dynamics, Dynamics)]
    assert error.y[-1] == pytest.approx(math.exp(np.log(logged).mean()))
    assert drawn["dynamics-kernel-alignment"].levels[0].low == 0.9
    assert "dynamics-norms" not in charts((asked, [replace(o, dynamics=None) for o in outcomes]))


def test_capacity_takes_the_most_bits_and_draws_no_held_out_loss() -> None:
    asked, outcomes = capacity_question()
    drawn = charts((asked, outcomes))
    assert set(drawn) == {"capacity-bits", "capacity-offered"}
    held, one, two = drawn["capacity-bits"].series
    smallest = [o for o in outcomes if o.arm.rank == 4]
    most = [max(o.stored_bits or 0.0 for o in smallest if o.seed == seed) for seed in range(3)]
    assert (held.low[0], held.high[0]) == (min(most), max(most))
    assert two.y == tuple(2 * x for x in one.x)
    offered = drawn["capacity-offered"]
    assert {series.name for series in offered.series} == {"r4", "r16", "r64", "all that was offered"}


def test_ratios_are_the_finding_s_against_length_and_width() -> None:
    asked, outcomes = ratio_question()
    drawn = charts((asked, outcomes))
    length, width = drawn["ratio-length"], drawn["ratio-width"]
    assert {series.name for series in length.series} == {
        f"d {d}, alpha {a}" for d in (64, 128, 256) for a in (8, 32, 128)
    }
    assert [(level.low, level.high) for level in length.levels] == [(5.0, 20.0)]
    expected = line(width, "sqrt(3) d / 32")
    assert expected.y == pytest.approx([math.sqrt(3) * d / 32 for d in (64, 128, 256)])
    measured = line(width, "alpha 32")
    details = dict(c4(outcomes).details)
    found = [details[f"ratio over sqrt(3) d / alpha, r16, width {d}"] for d in (64, 128, 256)]
    assert [y / e for y, e in zip(measured.y, expected.y, strict=True)] == pytest.approx(found)
    assert len(drawn["ratio-curves"].series) == 6
    assert "Of 36 arms 6 are drawn" in drawn["ratio-rates"].caption


def test_fidelity_shows_what_the_findings_say_at_every_step_and_rate() -> None:
    asked, outcomes = fidelity_question()
    drawn = charts((asked, outcomes))
    details = dict(c13(outcomes).details) | dict(c13b(outcomes).details)
    forward = drawn["fidelity-forward-r16"]
    assert [series.name for series in forward.series] == ["accumulator", "add"]
    assert line(forward, "add").y[0] == pytest.approx(details["forward fidelity, r16, add, step 1"])
    assert [(level.low, level.high) for level in forward.levels] == [(0.95, 1.05)]
    rates = drawn["fidelity-forward-rates-full"]
    assert line(rates, "copy nearest").x == tuple(sorted({o.lr for o in outcomes if o.arm.method == "full"}))
    steps = drawn["fidelity-share-steps"]
    whole = next(series for series in steps.series if series.name.startswith("full at"))
    assert whole.y[-1] == pytest.approx(details["share of the drop, full, run of 1000, step 1000"])
    at_rates = line(drawn["fidelity-share-rates"], "full")
    assert at_rates.x == line(rates, "copy nearest").x
    assert max(at_rates.y) > 0.7
    shift = drawn["fidelity-shift"]
    assert line(shift, "r16").y[-1] == pytest.approx(c13c(outcomes).estimate)
    assert line(shift, "full").y[-1] == pytest.approx(c13d(outcomes).estimate)
    curves = drawn["fidelity-rates"]
    assert {mark.name for mark in curves.marks} == {"r16", "r16 add", "full", "full nearest"}
    wide = charts((replace(asked, margins=(("fidelity", 0.1),)), outcomes))["fidelity-forward-r16"]
    assert wide.levels[0].low == 0.9


def test_fidelity_draws_what_there_is_without_twins_or_measurements() -> None:
    asked, outcomes = fidelity_question()
    bare = charts((asked, [replace(o, fidelity=()) for o in outcomes]))
    assert not any("forward" in key for key in bare)
    assert "fidelity-share-steps" in bare
    alone = charts((asked, [o for o in outcomes if not o.arm.variant]))
    assert set(alone) == {"fidelity-curves", "fidelity-rates"}
    one = charts((asked, [o for o in outcomes if o.seed == 0]))
    assert "fidelity-forward-r16" in one
    assert "fidelity-shift" not in one


def test_the_table_of_fidelity_says_what_fails_by_arm_step_and_rate() -> None:
    _, outcomes = fidelity_question()
    table = fidelity_table(outcomes)
    assert table.count("<table") == 2
    rows = [row for row in table.split("<tr>") if "<th scope=row>" in row]
    assert len(rows) == len({(o.arm, o.lr) for o in outcomes if o.fidelity})
    (measured,) = {o.fidelity[0].arithmetic for o in outcomes if o.arm.rank and o.fidelity}
    assert measured == "accumulator"
    cell = [o.fidelity[1].fidelity for o in outcomes if o.arm.rank and o.fidelity and o.lr == outcomes[0].lr]
    assert f"<b>{sum(cell) / len(cell):.3f} (" in rows[0]
    assert fidelity_table([replace(o, fidelity=()) for o in outcomes]) == ""


def test_rl_shows_accuracies_with_the_plateau_and_the_threshold_of_the_findings() -> None:
    asked, outcomes = rl_question()
    drawn = charts((asked, outcomes))
    rates, curves = drawn["rl-rates"], drawn["rl-curves"]
    assert [series.name for series in rates.series] == ["r1", "r4", "r32", "full"]
    details = dict(c9(outcomes).details) | dict(c9b(outcomes).details) | dict(c10(outcomes).details)
    r1 = line(rates, "r1")
    best = min(range(len(r1.x)), key=lambda k: abs(r1.x[k] - details["learning rate of r1"]))
    assert r1.y[best] == pytest.approx(details["accuracy of r1 at the end"])
    mark = next(mark for mark in rates.marks if mark.name == "r1")
    assert math.log10(mark.high / mark.low) == pytest.approx(details["plateau of r1, decades"], abs=0.1)
    assert max(mark.y for mark in rates.marks) < 0
    assert [text for _, text in rates.y_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert curves.levels[0].low == pytest.approx(details["threshold, accuracy"])
    r1 = next(series for series in curves.series if series.name.startswith("r1 at "))
    assert (r1.x[0], r1.x[-1], not curves.x_log) == (0.0, 120.0, True)
    assert r1.y[-1] == pytest.approx(details["accuracy of r1 at the end"])


def test_rl_draws_what_there_is_where_a_grid_is_too_short() -> None:
    asked, outcomes = rl_question()
    lowest = min(o.lr for o in outcomes if o.arm.rank == 1)
    short = [o for o in outcomes if o.arm.rank != 1 or o.lr <= 5 * lowest]
    drawn = charts((asked, short))
    assert "r1 reaches its highest learning rate" in drawn["rl-rates"].caption
    assert "Drawn all the same: the minimum of r1 lies on its highest" in drawn["rl-curves"].caption
    gone = [replace(o, diverged=True) for o in outcomes if o.arm.rank == 1]
    assert "rl-curves" not in charts((asked, gone))


def test_layers_of_rl_stand_side_by_side() -> None:
    chart = charts(rl_layers_question())["rl-layers-layers"]
    assert {series.name for series in chart.series} == {"r4", "r4 attention", "r4 mlp"}
    assert line(chart, "r4 attention").y[0] < line(chart, "r4 mlp").y[0] - 0.1
    assert [text for _, text in chart.x_ticks] == ["4,096"] * 3


def test_the_table_of_rl_holds_the_end_beside_the_best_and_what_collapsed() -> None:
    _, outcomes = rl_question()
    details = dict(c9(outcomes).details)
    row = next(row for row in accuracy_table(outcomes).split("<tr>") if ">r1<" in row)
    assert f"{details['accuracy of r1 at the end']:.3f} (" in row
    assert f"{details['accuracy of r1, best over steps']:.3f} (" in row
    assert "0 of 8" in row
    assert f"{details['collapsed cells of r1']:.0f} of 56" in row
    edge = [replace(o, validation=(*o.validation[:-1], 1 / o.lr)) for o in outcomes]
    assert accuracy_table(edge).count("<td class=number>-</td>") == 16


def test_names_and_looks_tell_arms_apart() -> None:
    for asked, outcomes in every_question():
        shown = Asked(key="x", question=asked, outcomes=tuple(outcomes)).shown
        names, styles = arm_names(shown), arm_styles(shown)
        assert len(set(names.values())) == len(shown)
        if asked.protocol != "invariance":
            assert len({(style.light, style.dash) for style in styles.values()}) == len(shown), asked.protocol
    tied = [arm for arm in surfaces(claim_question("learning-rate", "C3")[1]) if arm.variant]
    assert [arm_names(tied)[arm] for arm in tied] == [f"r{rank} alpha = r" for rank in (4, 16, 64)]


def test_a_study_whose_cells_all_diverged_draws_what_there_is() -> None:
    outcomes = [replace(o, diverged=True) for o in rank_question()[1]]
    assert set(charts((question("rank"), outcomes))) == {"rank-curves"}
    nothing = [replace(o, validation=(math.nan,) * len(o.steps), test=(math.nan,) * len(o.steps)) for o in outcomes]
    assert charts((question("rank"), nothing)) == {}
