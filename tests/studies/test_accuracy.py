"""Error rates of cells: what is read from them, and what their grids leave open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lowregret.specs import DataSpec, QuestionSpec
from lowregret.studies.accuracy import Tuned, collapsed, error_differences, plateau, steps_to, tuned_accuracy
from lowregret.studies.analysis import findings_of_study
from lowregret.studies.outcome import Outcome
from lowregret.studies.simulate import Design, Truth, draw
from lowregret.studies.surface import Refused, Surface, surfaces
from report.simulated import RL, write_study
from studies.cells import cells, full, lora

RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def surface(accuracies: tuple[float, ...], rates: tuple[float, ...] = RATES) -> Surface:
    """Two seeds with these accuracies at the end, on both splits; the last rate of all may have diverged (None)."""
    table = dict(zip(rates, accuracies, strict=True))
    (found,) = surfaces(cells(lora(1), lambda rate, seed: 1 - table[rate], rates=rates, seeds=range(2))).values()
    return found


def test_a_plateau_is_read_linearly_in_log_rate() -> None:
    found = plateau(surface((0.5, 0.9, 0.9, 0.1)), drop=0.1)
    # From 0.9: down by 0.1 of 0.4 on the lower side, of 0.8 on the upper.
    assert found.decades == pytest.approx([1 + 0.25 + 0.125] * 2)
    assert found.ends == pytest.approx((10 ** (-3 - 0.25), 10 ** (-2 + 0.125)))
    assert found.spacing == pytest.approx(1.0)
    low, high = 1 - 0.1 / 0.4, 1 - 0.1 / 0.8
    assert found.error == pytest.approx(np.sqrt((low**2 + high**2 + low * high) / 12))


def test_a_dip_in_a_plateau_does_not_count_and_a_diverged_cell_has_accuracy_0() -> None:
    rates = (*RATES, 1.0)
    dipped = plateau(surface((0.5, 0.9, 0.5, 0.9, 0.1), rates), drop=0.1)
    assert dipped.decades == pytest.approx([0.25 + 0.25 + 0.25 + 0.125] * 2)
    outcomes = cells(
        lora(1), lambda rate, seed: 0.1 if rate > 1e-4 else 0.5, rates=RATES, seeds=(0, 1), diverged=lambda r: r > 0.05
    )
    (found,) = surfaces(outcomes).values()
    assert plateau(found, drop=0.09).decades == pytest.approx([1 + 0.09 / 0.4 + 0.1] * 2)


@pytest.mark.parametrize(
    ("accuracies", "rates", "said"),
    [
        ((0.9, 0.9, 0.9, 0.1), RATES, "reaches its lowest learning rate"),
        ((0.1, 0.9, 0.9, 0.9), RATES, "reaches its highest learning rate"),
        ((0.1, 0.9, 0.9, 0.1), (1e-4, 1e-3, 1e-2, 1.0), "are not evenly spaced"),
        ((0.1, 0.9), RATES[:2], "a plateau needs 3"),
    ],
)
def test_a_grid_that_does_not_show_the_plateau_is_refused(
    accuracies: tuple[float, ...], rates: tuple[float, ...], said: str
) -> None:
    with pytest.raises(Refused, match=said):
        plateau(surface(accuracies, rates), drop=0.02)


def test_rounded_rates_are_evenly_spaced() -> None:
    rates = (3e-4, 6.46e-4, 1.39e-3, 3e-3, 6.46e-3, 1.39e-2, 3e-2)
    assert plateau(surface((0.1, 0.5, 0.9, 0.9, 0.9, 0.1, 0.1), rates), drop=0.02).spacing == pytest.approx(1 / 3)


def test_the_best_rate_is_a_measured_one_and_a_leap_below_it_is_an_error_of_the_grid() -> None:
    found = tuned_accuracy(surface((0.3, 0.7, 0.9, 0.1)))
    assert (found.rate, found.column) == (1e-2, 2)
    assert found.final == pytest.approx([0.9, 0.9])
    assert found.grid_error == pytest.approx(0.2 / 6)
    # Between two equal ones a parabola rises by an eighth of what it falls outside.
    assert tuned_accuracy(surface((0.3, 0.9, 0.9, 0.1))).grid_error == pytest.approx(0.6 / 16)
    assert tuned_accuracy(surface((0.3, 0.3, 0.9, 0.1))).grid_error == pytest.approx(0.1)
    difference, error = error_differences(surface((0.3, 0.7, 0.8, 0.1)), surface((0.3, 0.9, 0.9, 0.1)))
    assert difference == pytest.approx([0.1, 0.1])
    assert error == pytest.approx(np.hypot(0.1 / 6, 0.6 / 16))
    with pytest.raises(Refused, match="highest learning rate"):
        tuned_accuracy(surface((0.1, 0.2, 0.3, 0.4)))


def curve(*accuracy: float, arm=None, lr: float = 1e-3, seed: int = 0) -> Outcome:
    errors = tuple(1 - one for one in accuracy)
    steps = tuple(10 * k for k in range(len(accuracy)))
    arm = arm or lora(1, steps=steps[-1])
    return Outcome(cell=f"{lr}/{seed}", arm=arm, lr=lr, seed=seed, steps=steps, validation=errors, test=errors)


def tuned(*curves: Outcome) -> Tuned:
    (found,) = surfaces(curves).values()
    zero = np.zeros(len(curves))
    return Tuned(surface=found, column=0, start=zero, final=zero, best=zero, grid_error=0.0)


def test_steps_are_read_between_evaluations_and_a_seed_may_never_get_there() -> None:
    reached = steps_to(
        tuned(curve(0.4, 0.6, 0.8, 0.9), curve(0.4, 0.5, 0.6, 0.6, seed=1), curve(0.8, 0.9, 0.9, 0.9, seed=2)), 0.7
    )
    assert reached.steps == pytest.approx([15.0, np.inf, 1.0])
    assert (reached.num_censored, reached.last, reached.spacing) == (1, 30, 10.0)
    assert np.exp(reached.log_steps(beyond=2.0)) == pytest.approx([15.0, 60.0, 1.0])
    assert reached.log_error == pytest.approx(10 / np.sqrt(12) / 8)


def test_a_cell_that_fell_from_its_best_has_collapsed_and_one_that_never_rose_has_not() -> None:
    assert collapsed(curve(0.4, 0.76, 0.03))
    assert not collapsed(curve(0.4, 0.76, 0.4))
    assert not collapsed(curve(0.04, 0.04, 0.05))
    assert collapsed(replace(curve(0.4, 0.9), diverged=True))


def test_a_study_supports_c9_only_beside_its_negative_control(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rl = QuestionSpec(protocol="rl", data=DataSpec(source="max3"), ranks=(4,), rl=RL)
    control = QuestionSpec(protocol="certify", data=DataSpec(source="markov"), ranks=(4,))
    asked = (rl, draw("C9", Truth(), Design(), range(8), rng))
    lost = (control, draw("certify", Truth(regret=0.05), Design(), range(5), rng))
    elsewhere = (replace(control, ranks=(16,)), lost[1])
    verdicts = {
        name: {finding.claim: finding for finding in findings_of_study(write_study(tmp_path / name, study))}["C9"]
        for name, study in {"both": [asked, lost], "alone": [asked], "other rank": [asked, elsewhere]}.items()
    }
    assert {name: finding.verdict for name, finding in verdicts.items()} == {
        "both": "supported", "alone": "inconclusive", "other rank": "inconclusive",
    }  # fmt: skip
    assert "the negative control is missing" in verdicts["alone"].reason
    assert any(name.startswith("negative control 1") for name, _ in verdicts["both"].details)


def test_full_fine_tuning_is_an_arm_like_any_other() -> None:
    (found,) = surfaces(cells(full(), lambda rate, seed: abs(np.log(rate / 1e-3)) / 10)).values()
    assert tuned_accuracy(found).rate == pytest.approx(1e-3)
