"""Claims at their edges: too little, too broken or too lopsided is inconclusive and says what would settle it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest

from lowregret.specs import DataSpec, QuestionSpec
from lowregret.studies.claims import (
    CLAIMS,
    Transformed,
    c1,
    c2,
    c3,
    c4,
    c5,
    c6,
    c6b,
    c7,
    c7_rl,
    c8,
    c9,
    c9b,
    c10,
    c12,
    certify,
)
from lowregret.studies.claims.c9_rl_parity import with_control
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Outcome
from lowregret.studies.simulate import CLAIMS_OF, Design, RateTruth, RLTruth, Truth, draw, power_table
from studies.cells import GRID, cells, full, lora

CAPACITY = Design(ranks=(1, 4, 16, 64))
TRUTHS = {"C6": Truth(departure_slope=0.8)}
SEEDS = {"C9": 8, "C9b": 8}
"""Of claims that ask for more than 5."""


def study(claim: str, seeds: int | None = None, truth: Truth | None = None) -> list[Outcome]:
    design = CAPACITY if claim == "C6" else Design()
    seeds = seeds or SEEDS.get(claim, 5)
    return draw(claim, truth or TRUTHS.get(claim, Truth()), design, range(seeds), np.random.default_rng(1))


def broken(outcomes: list[Outcome], change: Callable[[Outcome], Outcome]) -> list[Outcome]:
    return [change(outcome) for outcome in outcomes]


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("no cells", lambda outcomes: []),
        ("one cell", lambda outcomes: outcomes[:1]),
        ("one seed", lambda outcomes: [o for o in outcomes if o.seed == 0]),
        ("two seeds", lambda outcomes: [o for o in outcomes if o.seed < 2]),
        ("one arm", lambda outcomes: [o for o in outcomes if o.arm == outcomes[0].arm]),
        (
            "all diverged",
            lambda outcomes: [
                replace(o, diverged=True, steps=(0,), validation=(5.0,), test=(5.0,), stored_bits=None)
                for o in outcomes
            ],
        ),
        (
            "no numbers",
            lambda outcomes: [
                replace(o, validation=(math.nan,) * len(o.steps), test=(math.nan,) * len(o.steps), stored_bits=None)
                for o in outcomes
            ],
        ),
    ],
)
def test_too_little_is_inconclusive_and_says_what_would_do(
    claim: str, kind: str, spoil: Callable[[list[Outcome]], list[Outcome]]
) -> None:
    finding = CLAIMS[claim](spoil(study(claim)), model="micro")
    assert finding.verdict == "inconclusive"
    assert finding.reason
    assert finding.settles
    json.dumps(asdict(finding), allow_nan=False)


NO_RATE_CHOSEN = ("C2", "C6", "C6b", "C11", "C13", "C13b")
"""Claims that look at given rates, or at all of them, and at no arm's best."""


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim not in NO_RATE_CHOSEN])
def test_one_rate_or_an_edge_is_inconclusive_and_asks_for_rates(claim: str) -> None:
    outcomes = study(claim)
    first = next(o.arm for o in outcomes if claim != "C13d" or o.arm.method == "full")  # C13d is not about adapters
    lowest = min(o.lr for o in outcomes if o.arm == first)
    one_rate = [o for o in outcomes if o.arm != first or o.lr == lowest]
    finding = CLAIMS[claim](one_rate)
    assert finding.verdict == "inconclusive"
    assert "rates" in finding.settles
    falling = broken(outcomes, lambda o: replace(o, validation=(5.0, 1 / o.lr), test=(5.0, 1 / o.lr)))
    edge = CLAIMS[claim](falling)
    assert edge.verdict == "inconclusive"
    assert "highest learning rate" in edge.reason
    assert edge.settles.startswith("train it at rates above")


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_finding_is_plain_json_with_all_it_needs(claim: str) -> None:
    outcomes = study(claim)
    finding = CLAIMS[claim](outcomes, model="micro")
    json.dumps(asdict(finding), allow_nan=False)
    assert (finding.claim, finding.model, finding.seeds) == (claim, "micro", SEEDS.get(claim, 5))
    assert finding.interval is not None and finding.interval[0] <= finding.interval[1]
    assert finding.margin is not None
    assert finding.p_value is not None and 0 <= finding.p_value <= 1
    assert set(finding.cells) <= {outcome.cell for outcome in outcomes}


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_order_of_cells_does_not_matter(claim: str) -> None:
    outcomes = study(claim)
    finding, other = CLAIMS[claim](outcomes), CLAIMS[claim](outcomes[::-1])
    assert (finding.verdict, finding.interval, finding.p_value) == (other.verdict, other.interval, other.p_value)


def test_the_minimum_of_seeds_is_a_margin_and_c2_and_c3_keep_theirs() -> None:
    assert certify(study("certify", 3), Margins(least_seeds=5)).settles == "2 more"
    assert certify(study("certify", 2), Margins(least_seeds=2)).estimate is not None
    for claim in (c2, c3):
        assert "the rule needs 5" in claim(study(claim.__name__.upper(), 4), Margins(least_seeds=2)).reason


def test_c1_is_exact() -> None:
    pairs = [
        Transformed(p=2.0, q=0.5, kind="eps 0", difference=0.0, cells=("eps 0",)),
        Transformed(p=2.0, q=0.5, kind="corrected", difference=3e-13, cells=("corrected",)),
        Transformed(p=2.0, q=0.5, kind="uncorrected", difference=1e-4, cells=("uncorrected",)),
    ]
    assert c1(pairs).verdict == "supported"
    assert c1(pairs).cells == ("eps 0", "corrected", "uncorrected")
    assert c1(pairs[:2]).settles == "runs with uncorrected"
    assert c1([replace(pairs[0], difference=1e-17), *pairs[1:]]).verdict == "contradicted"
    assert c1([*pairs[:2], replace(pairs[2], difference=0.0)]).verdict == "contradicted"
    assert c1([]).verdict == "inconclusive"


def test_c2_wants_one_rate_and_a_loss_before_training() -> None:
    outcomes = study("C2")
    assert "same one learning rate" in c2(broken(outcomes, lambda o: replace(o, lr=o.lr * (o.arm.rank or 1)))).reason
    late = broken(outcomes, lambda o: replace(o, steps=(0, 400)))
    assert "first 20 steps" in c2(late).reason


def test_c3_needs_its_positive_control_to_support_but_not_to_contradict() -> None:
    outcomes = study("C3")
    without = [o for o in outcomes if not o.arm.variant]
    assert c3(outcomes).verdict == "supported"
    assert c3(without).verdict == "inconclusive"
    assert "positive control is missing" in c3(without).reason
    blind = c3(study("C3", truth=Truth(rates=RateTruth(tied_slope=0.0))))
    assert blind.verdict == "inconclusive"
    assert "positive control failed" in blind.reason
    steep = study("C3", truth=Truth(rates=RateTruth(rank_slope=0.4)))
    assert c3([o for o in steep if not o.arm.variant]).verdict == "contradicted"
    assert dict(c3(outcomes).details)["slope with alpha = r: estimate"] == pytest.approx(-0.45, abs=0.1)


def test_c3_leaves_out_rank_1_and_takes_the_shared_arm_of_the_control() -> None:
    rank_1 = cells(lora(1, steps=1000), lambda rate, seed: (math.log(rate / 1e-4)) ** 2)
    assert c3([*study("C3"), *rank_1]) == c3(study("C3"))


def test_an_arm_that_c4_only_reports_does_not_hide_its_verdict() -> None:
    """LR* of a flat curve at alpha 128 is refused; the rule is about alpha 32."""
    outcomes = study("C4")
    wide = [
        replace(o, arm=replace(o.arm, alpha=128.0), cell=f"{o.cell} wide", validation=(5.0, 2.0), test=(5.0, 2.0))
        for o in outcomes
        if o.arm.method == "lora"
    ]
    alone, beside = CLAIMS["C4"](outcomes), CLAIMS["C4"]([*outcomes, *wide])
    assert (beside.verdict, beside.estimate) == (alone.verdict, alone.estimate)
    assert not any("alpha 128" in name for name, _ in beside.details)


def test_c4_compares_with_the_first_step_and_takes_the_longest_runs() -> None:
    outcomes = study("C4")
    finding = c4(outcomes)
    name = "ratio over sqrt(3) d / alpha, r4, width 128"
    assert dict(finding.details)[name] == pytest.approx(10 * 32 / (math.sqrt(3) * 128), rel=0.3)
    short = broken(outcomes, lambda o: replace(o, arm=replace(o.arm, steps=10), lr=o.lr * 7))
    assert c4([*short, *outcomes]) == finding
    assert "2 widths" in c4([o for o in outcomes if o.arm.width != 64]).reason


def test_c4_follows_the_protocol_s_words_on_the_width_slope() -> None:
    drifting = study("C4", 12, Truth(rates=RateTruth(width_slope=0.12)))
    finding = c4(drifting)
    assert finding.verdict == "inconclusive"
    assert "leaves out 0" in finding.reason


def test_c5_and_c6_say_what_they_lack() -> None:
    assert c5([o for o in study("C5") if o.arm.steps == 100]).settles == "further run lengths"
    assert c6([o for o in study("C6") if o.arm.rank != 4]).reason == "3 ranks, and the rule needs 4"
    flat = c6(study("C6", truth=Truth()))
    assert flat.reason == "no rank departs from rank 64"


def test_c6b_refuses_adapters_that_are_not_full() -> None:
    roomy = broken(study("C6b"), lambda o: replace(o, stored_bits=o.offered_bits))
    assert "is not full" in c6b(roomy).reason
    assert "facts of" in c6b(roomy).settles
    assert "no cell says" in c6b(broken(roomy, lambda o: replace(o, stored_bits=None))).reason


def test_c7_wants_equal_parameters() -> None:
    outcomes = study("C7", truth=Truth(attention_gap=0.02))
    assert c7(outcomes).verdict == "supported"
    larger = broken(
        outcomes,
        lambda o: replace(o, arm=replace(o.arm, params=2 * o.arm.params)) if o.arm.targets == ("all",) else o,
    )
    assert c7(larger).reason == "no arm with targets all has MLP-only's 4096 parameters, to 2%"


def test_c8_without_its_control_is_inconclusive_and_other_variants_are_details() -> None:
    outcomes = study("C8", truth=Truth(batch_growth=0.01, equal_growth=0.01))
    assert c8(outcomes).verdict == "supported"
    assert "control with equal steps is missing" in c8([o for o in outcomes if not o.arm.variant]).reason
    steeper = [
        replace(o, cell=f"x{o.cell}", arm=replace(o.arm, variant="init x4"))
        for o in outcomes
        if o.arm.method == "lora" and not o.arm.variant
    ]
    assert dict(c8([*outcomes, *steeper]).details)["growth of the gap, init x4"] == pytest.approx(0.04, abs=0.01)


def test_c9_holds_the_end_beside_the_best_and_counts_what_collapsed() -> None:
    outcomes = study("C9")
    finding = c9(outcomes)
    assert finding.verdict == "supported"
    assert "rank 4" in finding.question
    details = dict(finding.details)
    assert details["accuracy before training"] == pytest.approx(0.4, abs=0.02)
    assert details["accuracy of r4 at the end"] == pytest.approx(0.93, abs=0.03)
    assert details["collapsed cells of r4"] == sum(o.test[-1] > 0.9 for o in outcomes if o.arm.rank == 4)
    assert details["collapsed cells of r4 at that rate"] == 0
    best = details["learning rate of r4"]
    spoilt = [
        replace(o, test=(*o.test[:-1], 0.99), validation=(*o.validation[:-1], 0.99))
        if (o.arm.rank, o.lr, o.seed) == (4, best, 0)
        else o
        for o in outcomes
    ]
    broken_up = dict(c9(spoilt).details)
    if broken_up["learning rate of r4"] == best:
        assert broken_up["collapsed cells of r4 at that rate"] == 1
        assert broken_up["accuracy of r4, best over steps"] > broken_up["accuracy of r4 at the end"] + 0.05
    assert broken_up["collapsed cells of r4"] == details["collapsed cells of r4"] + 1


def test_c9_decides_by_the_smallest_rank_and_shows_the_others() -> None:
    outcomes = study("C9")
    larger = [
        replace(o, arm=replace(o.arm, rank=16), cell=f"{o.cell} r16", test=tuple(e + 0.05 for e in o.test))
        for o in outcomes
        if o.arm.rank == 4
    ]
    finding = c9([*outcomes, *larger])
    assert (finding.verdict, finding.estimate) == (c9(outcomes).verdict, c9(outcomes).estimate)
    shown = dict(finding.details)["final accuracy of rank 16 minus FullFT's: estimate"]
    assert shown == pytest.approx((finding.estimate or 0.0) - 0.05)
    edge = [replace(o, validation=(*o.validation[:-1], 1 / o.lr)) for o in larger]
    assert c9([*outcomes, *edge]).estimate == finding.estimate
    assert not any("rank 16" in name for name, _ in c9([*outcomes, *edge]).details)


def test_c9_wants_eight_seeds_something_learned_and_its_negative_control() -> None:
    assert c9(study("C9", 7)).settles == "1 more"
    nothing = c9(study("C9", truth=Truth(rl=RLTruth(peak=0.44, fall=0.0, run=0.002, shared=0.002))))
    assert nothing.verdict == "inconclusive"
    assert "where nobody learns all are equal" in nothing.reason
    finding = c9(study("C9"))
    lost, kept = certify(study("certify", truth=Truth(regret=0.05))), certify(study("certify"))
    assert (lost.verdict, kept.verdict) == ("contradicted", "supported")
    assert with_control(finding, [lost]).verdict == "supported"
    assert with_control(finding, [kept, lost]).verdict == "supported"
    assert with_control(finding, [lost]).details[-1][0].startswith("negative control 1: regret of rank 4")
    blind, alone = with_control(finding, [kept]), with_control(finding, [])
    assert blind.verdict == alone.verdict == "inconclusive"
    assert "the negative control did not show the rank lose" in blind.reason
    assert "the negative control is missing" in alone.reason
    worse = c9(study("C9", truth=Truth(regret=0.08)))
    assert with_control(worse, []).verdict == worse.verdict == "contradicted"


def test_c9b_counts_seeds_that_never_get_there_against_what_it_would_say() -> None:
    outcomes = study("C9b")
    assert c9b(outcomes).verdict == "supported"

    def stuck(seeds: int, method: str) -> list[Outcome]:
        return [
            replace(o, test=(*o.test[:1], *(0.3,) * (len(o.test) - 1)))
            if o.seed < seeds and o.arm.method == method and o.test[-1] < 0.5
            else o
            for o in outcomes
        ]

    one, many = c9b(stuck(1, "lora")), c9b(stuck(8, "lora"))
    assert one.verdict == "inconclusive"
    assert dict(one.details)["seeds of r4 that never reach it"] == 1
    assert many.verdict == "contradicted"
    assert "3 of 8 seeds of full never reach the threshold" in c9b(stuck(3, "full")).reason
    flat = c9b(study("C9b", truth=Truth(rl=RLTruth(peak=0.44))))
    assert "leaves no threshold" in flat.reason


def test_c10_wants_both_ends_of_every_plateau_and_even_grids() -> None:
    outcomes = study("C10", truth=Truth(rl=RLTruth(plateau_gain=0.6)))
    assert c10(outcomes).verdict == "supported"
    rates = sorted({o.lr for o in outcomes if o.arm.method == "lora"})
    cut = c10([o for o in outcomes if o.arm.method == "full" or o.lr >= rates[2]])
    assert cut.reason == "the plateau of r4 reaches its lowest learning rate"
    assert cut.settles == f"train it at rates below {rates[2]:.3g}"
    assert "not evenly spaced" in c10([o for o in outcomes if o.lr != rates[1]]).reason
    coarse = [o for o in outcomes if o.arm.method == "full" or o.lr in rates[::2]]
    assert "not spaced alike" in c10(coarse).reason


def test_c7_of_rl_judges_error_rates_with_its_own_margin() -> None:
    outcomes = study("C7rl", 8, Truth(attention_gap=0.1))
    finding = c7_rl(outcomes)
    assert (finding.claim, finding.verdict, finding.margin) == ("C7rl", "supported", (-0.03, 0.03))
    assert c7_rl(outcomes, Margins(rl_parity=0.001)).verdict == "inconclusive"


def test_certify_names_its_rank_and_praises_no_regret() -> None:
    outcomes = study("certify", truth=Truth(regret=-0.03))
    finding = certify(outcomes)
    assert finding.verdict == "supported"
    assert "rank 4" in finding.question and "rank 4" in finding.quantity
    assert dict(finding.details)["p of equality within the margin on both sides"] > 0.9
    assert certify(outcomes, rank=7).reason == "no LoRA arm of rank 7"


def test_c12_counts_and_reports_times_beside() -> None:
    def cost(arm, adds: float, seconds: float) -> list[Outcome]:
        outcomes = cells(arm, lambda rate, seed: 1.0, rates=GRID[:1], seeds=range(3))
        return [replace(o, multiply_adds=adds, seconds=seconds * (1 + 0.01 * o.seed)) for o in outcomes]

    finding = c12([*cost(lora(), 68.0, 8.0), *cost(full(), 100.0, 10.0)], model="micro")
    assert (finding.verdict, finding.estimate, finding.interval) == ("supported", pytest.approx(0.68), None)
    details = dict(finding.details)
    assert details["seconds of LoRA over FullFT's"] == pytest.approx(0.8)
    assert details["its interval, low"] == pytest.approx(0.8)
    assert c12([*cost(lora(), 90.0, 8.0), *cost(full(), 100.0, 10.0)]).verdict == "contradicted"
    assert c12(study("certify")).reason == "the arithmetic of r4 was not counted"
    assert c12([]).verdict == "inconclusive"


def test_the_table_of_power_has_a_row_for_every_truth() -> None:
    question = QuestionSpec(protocol="ratio", data=DataSpec(source="x"), seeds=(0, 1))
    rows = power_table(question, studies=20)
    assert {row["claim"] for row in rows} == {"C4", "C5"}
    assert all(row["inconclusive"] == 1.0 for row in rows)
    assert power_table(replace(question, protocol="cost")) == []
    assert set(CLAIMS) == {claim for claims in CLAIMS_OF.values() for claim in claims}
