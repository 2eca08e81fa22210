"""Claims on what bf16 swallows, on cells whose numbers are stated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from lowregret.specs import Arm, DataSpec, QuestionSpec
from lowregret.store.study import ForwardFidelity
from lowregret.studies.claims import CLAIMS_OF, c13, c13b, c13c, c13d, c13e
from lowregret.studies.outcome import Outcome
from lowregret.studies.simulate import power_table
from lowregret.studies.surface import Refused, surfaces
from lowregret.studies.swallowing import ADD, FORWARD, NEAREST, cut_at, pairs, reached, shares
from studies.cells import GRID, full, lora

SEEDS = range(5)
STEPS = (0, 1, 2, 4)
BEST = 1e-3
"""Faithful LR* of every arm."""

Fidelities = dict[str, float]


def curve(drop: float, lr: float, best: float, share: Sequence[float]) -> tuple[float, ...]:
    """Losses at STEPS: half of the drop at step 1, three quarters at 2, all of it at 4, less off the best rate."""
    whole = drop - 0.1 * math.log(lr / best) ** 2
    return (3.0, *(3.0 - part * own * whole for part, own in zip((0.5, 0.75, 1.0), share, strict=True)))


def arm_cells(
    arm: Arm,
    *,
    best: float = BEST,
    share: Sequence[float] = (1.0, 1.0, 1.0),
    forward: Callable[[int, float], Fidelities] = lambda step, lr: {},
    seeds: Sequence[int] = SEEDS,
) -> list[Outcome]:
    made: list[Outcome] = []
    for seed in seeds:
        for lr in GRID:
            off = 0.001 * math.sin(seed + 1)  # seeds differ a little, and in no order
            losses = curve(1.0 + off, lr, best * (1 + off), share)
            rows = tuple(
                ForwardFidelity(
                    step=step,
                    arithmetic=name,
                    fidelity=value + off,
                    low=value - 0.01,
                    high=value + 0.01,
                    fp32_drop=0.5,
                    drop=0.5 * value,
                    sequences=64,
                )
                for step in STEPS[1:]
                for name, value in forward(step, lr).items()
            )
            made.append(
                Outcome(
                    cell=f"{arm.label}/{lr:.3g}/{seed}",
                    arm=arm,
                    lr=lr,
                    seed=seed,
                    steps=STEPS,
                    validation=losses,
                    test=losses,
                    fidelity=rows,
                )
            )
    return made


def forward_of(method: str, usual: float) -> Callable[[int, float], Fidelities]:
    """The usual arithmetic lets more act at every step."""
    faithful, other = FORWARD[method]
    return lambda step, lr: {faithful: 1.0, other: min(1.0, usual * step), "addmm": usual}


def study(
    *,
    add: float = 0.4,
    share: Sequence[float] = (0.4, 0.6, 0.8),
    lora_best: float = BEST,
    full_best: float = BEST,
    steps: int = 4,
) -> list[Outcome]:
    """Rank 16 and full fine-tuning in both arithmetics."""
    rank, whole = lora(16, steps=steps), full(steps=steps)
    return [
        *arm_cells(rank, forward=forward_of("lora", add)),
        *arm_cells(replace(rank, variant=ADD), best=lora_best, share=share),
        *arm_cells(whole, forward=forward_of("full", 0.1)),
        *arm_cells(replace(whole, variant=NEAREST), best=full_best, share=share),
    ]


def test_an_addition_that_swallows_beside_an_accumulator_that_does_not_supports_c13():
    finding = c13(study(), model="m")
    assert finding.verdict == "supported"
    details = dict(finding.details)
    assert details["learning rate of r16"] == pytest.approx(BEST)
    assert details["forward fidelity, r16, add, step 1"] == pytest.approx(0.4, abs=1e-3)
    assert details["forward fidelity, r16, add, step 2"] == pytest.approx(0.8, abs=1e-3)
    assert details["forward fidelity, full, copy nearest, step 1"] == pytest.approx(0.1, abs=1e-3)
    assert details["forward fidelity, r16, addmm, step 1"] == pytest.approx(0.4, abs=1e-3)


def test_an_addition_that_lets_all_act_contradicts_it():
    finding = c13(study(add=1.0))
    assert finding.verdict == "contradicted"
    assert "add after step 1, r16" in finding.quantity


def test_without_forward_fidelities_it_says_what_is_missing():
    bare = [replace(outcome, fidelity=()) for outcome in study()]
    finding = c13(bare)
    assert finding.verdict == "inconclusive"
    assert "the forward fidelity of r16 was not measured" in finding.reason
    alone = [outcome for outcome in study() if not outcome.arm.variant]
    assert "no arm was trained in both arithmetics" in c13(alone).reason
    assert "no arm of a fidelity study" in c13([]).reason


def test_the_held_out_sequences_errors_count_however_many_seeds_agree():
    """Intervals of +-0.06 around 1 leave a standard error of 0.031, so that 5 seeds can't show 1 +- 0.05."""

    def wide(row: ForwardFidelity) -> ForwardFidelity:
        return replace(row, low=row.fidelity - 0.06, high=row.fidelity + 0.06)

    finding = c13([replace(o, fidelity=tuple(map(wide, o.fidelity))) for o in study()])
    assert finding.verdict == "inconclusive"
    assert "accumulator after step 1" in finding.quantity or "stochastic after step 1" in finding.quantity


def test_the_share_of_the_drop_and_its_dead_zone():
    finding = c13b(study())
    assert (finding.verdict, finding.seeds) == ("supported", 5)
    assert finding.estimate == pytest.approx(0.8, abs=1e-6)
    details = dict(finding.details)
    assert details["share of the drop, r16, run of 4, step 1"] == pytest.approx(0.4)
    assert details["first step with 50% of the drop, r16, run of 4"] == 2
    assert details["steps without 95% of the drop, r16, run of 4"] == 4
    assert c13b(study(share=(0.5, 0.9, 1.0))).verdict == "contradicted"


def test_a_verdict_is_about_the_shortest_runs_and_the_others_are_told():
    longer = [replace(o, arm=replace(o.arm, steps=16)) for o in study(share=(0.9, 1.0, 1.0))]
    finding = c13b([*study(), *longer])
    assert finding.estimate == pytest.approx(0.8, abs=1e-6)
    assert dict(finding.details)["share of the drop, r16, run of 16, step 4"] == pytest.approx(1.0)


def test_shifts_are_of_each_method_and_the_ratio_moves_by_their_difference():
    outcomes = study(lora_best=BEST * 10**0.15, full_best=BEST * 10**0.4)
    raised, whole, ratio = c13c(outcomes), c13d(outcomes), c13e(outcomes)
    assert [one.verdict for one in (raised, whole, ratio)] == ["supported", "supported", "contradicted"]
    assert raised.estimate == pytest.approx(0.15, abs=0.01)
    assert whole.estimate == pytest.approx(0.4, abs=0.01)
    assert ratio.estimate == pytest.approx(0.15 - 0.4, abs=0.02)
    details = dict(ratio.details)
    assert details["ratio of LR*, r16, 4 steps, faithful"] == pytest.approx(1.0, abs=0.02)
    assert details["ratio of LR*, r16, 4 steps, usual"] == pytest.approx(10**-0.25, abs=0.02)
    assert dict(whole.details)["LR* of full, 4 steps, usual"] == pytest.approx(BEST * 10**0.4, rel=0.03)


def test_an_edge_of_one_method_leaves_the_other_s_verdict():
    outcomes = study(lora_best=BEST * 10**0.3, full_best=1.0)
    assert c13c(outcomes).verdict == "supported"
    for finding in (c13d(outcomes), c13e(outcomes)):
        assert finding.verdict == "inconclusive"
        assert "the minimum of full nearest lies on its highest learning rate" in finding.reason


def test_unmoved_rates_contradict_a_rise_and_support_one_ratio():
    outcomes = study()
    assert [claim(outcomes).verdict for claim in (c13c, c13d, c13e)] == ["contradicted", "contradicted", "supported"]


def test_pairs_share_rates_and_choose_by_both_arms():
    outcomes = [o for o in study(lora_best=BEST * 10**0.5) if not (o.arm.variant == ADD and o.lr < 5e-4)]
    (pair, _) = pairs(surfaces(outcomes))
    assert pair.faithful.rates == pair.usual.rates == tuple(rate for rate in GRID if rate > 5e-4)
    assert pair.rate == pytest.approx(BEST * 10**0.25)  # between the two arms' own
    assert len(pair.faithful.outcomes) == len(pair.faithful.rates) * len(SEEDS)
    gone = [replace(o, diverged=True) if o.arm.variant == ADD else o for o in outcomes]
    with pytest.raises(Refused, match="no learning rate at which both"):
        pairs(surfaces(gone))


def test_a_loss_that_does_not_fall_has_no_share():
    outcomes = study()
    rising = [
        replace(o, test=(3.0, 3.1, 2.8, 2.5)) if o.arm.method == "lora" and not o.arm.variant and o.seed == 0 else o
        for o in outcomes
    ]
    pair, _ = pairs(surfaces(rising))
    steps, values = shares(pair)
    assert steps == (1, 2, 4)
    assert np.isnan(values[0, 0])
    assert np.isfinite(values[1:]).all()


def test_the_dead_zone_ends_where_a_curve_stays():
    steps = (1, 2, 4, 8)
    assert reached(steps, np.array([0.6, 0.4, 0.7, 0.8]), 0.5) == 4
    assert reached(steps, np.array([0.6, 0.7, 0.7, 0.8]), 0.5) == 1
    assert reached(steps, np.array([0.6, 0.7, 0.7, 0.4]), 0.5) is None
    assert reached(steps, np.array([0.6, np.nan, 0.7, 0.8]), 0.5) == 4


def test_cells_cut_at_a_step_are_shorter_runs():
    outcomes = study()
    cut = cut_at([*outcomes, replace(outcomes[0], steps=(0, 1), validation=(3.0, 2.0), test=(3.0, 2.0))], 2)
    assert {outcome.arm.steps for outcome in cut} == {2}
    assert len(cut) == len(outcomes)
    assert cut[0].final_test == outcomes[0].test[2]


def test_bases_of_several_widths_are_told_apart_and_compared_with_their_own_full_fine_tuning():
    wide = [replace(o, arm=replace(o.arm, width=256), lr=o.lr * (4 if o.arm.method == "lora" else 1)) for o in study()]
    outcomes = [*study(), *wide]
    details = dict(c13e(outcomes).details)
    assert details["ratio of LR*, r16 width 128, 4 steps, faithful"] == pytest.approx(1, abs=0.02)
    assert details["ratio of LR*, r16 width 256, 4 steps, faithful"] == pytest.approx(4, abs=0.1)
    forward = dict(c13(outcomes).details)
    assert "forward fidelity, r16 width 256, add, step 1" in forward
    assert len([name for name in forward if name.endswith("add, step 1")]) == 2


def test_power_is_told_for_every_claim_of_the_protocol():
    question = QuestionSpec(protocol="fidelity", data=DataSpec(source="d"), ranks=(16,))
    rows = power_table(question, studies=4)
    assert {row["claim"] for row in rows} == set(CLAIMS_OF["fidelity"])
    assert len({(row["claim"], row["truth"]) for row in rows}) == 10
