"""Studies that were never run: outcomes drawn from a known truth, and how often a claim's rule says what of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lowregret.specs import QuestionSpec
from lowregret.store.study import Dynamics
from lowregret.studies.claims import CLAIMS, CLAIMS_OF
from lowregret.studies.designs import BF16_CLAIMS, RL_CLAIMS, THIRD_DECADE, Design, arms_of, around
from lowregret.studies.margins import Margins
from lowregret.studies.outcome import Arm, Outcome
from lowregret.studies.simulate_fidelity import measured, shared_grids
from lowregret.studies.simulate_rl import simulate_rl
from lowregret.studies.students_t import Floats
from lowregret.studies.truth import START_LOSS, Noise, RateTruth, SwallowedTruth, Truth
from lowregret.studies.truth_rl import RLTruth

__all__ = [
    "Design",
    "Noise",
    "RLTruth",
    "RateTruth",
    "SimulatedStudy",
    "SwallowedTruth",
    "Truth",
    "VerdictRates",
    "power",
    "power_table",
    "simulate",
]

Rates = Mapping[Arm, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class VerdictRates:
    """Shares of simulated studies by verdict.

    >>> VerdictRates(supported=0.8, contradicted=0.0, inconclusive=0.2, studies=1000).supported
    0.8
    """

    supported: float
    contradicted: float
    inconclusive: float
    studies: int


def power(
    claim: str,
    truth: Truth,
    *,
    seeds: int = 5,
    studies: int = 1000,
    margins: Margins | None = None,
    design: Design | None = None,
    seed: int = 0,
) -> VerdictRates:
    """How often a claim's rule gives each verdict.

    Args:
        claim: id in `CLAIMS`.
        truth: what the studies are drawn from.
        seeds: of each study.
        studies: simulated.
        margins: of the rule.
        design: ranks, widths, lengths and batches.
        seed: of the simulation.
    """
    margins, design = margins or Margins(), design or Design()
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(("supported", "contradicted", "inconclusive"), 0)
    for _ in range(studies):
        counts[CLAIMS[claim](draw(claim, truth, design, range(seeds), rng), margins).verdict] += 1
    return VerdictRates(
        supported=counts["supported"] / studies,
        contradicted=counts["contradicted"] / studies,
        inconclusive=counts["inconclusive"] / studies,
        studies=studies,
    )


def draw(claim: str, truth: Truth, design: Design, seeds: Sequence[int], rng: np.random.Generator) -> list[Outcome]:
    """One simulated study of a claim."""
    arms = arms_of(claim, design)
    if claim == "C11":
        return _moved(simulate(dict.fromkeys(arms, (truth.rates.full,)), seeds, truth, rng), truth, rng)
    if claim == "C2":
        return simulate(dict.fromkeys(arms, (truth.rates.full * truth.rates.ratio,)), seeds, truth, rng)
    if claim in RL_CLAIMS:
        grids = {arm: around(truth.rates.best(arm), design.rates, rng, factor=THIRD_DECADE) for arm in arms}
        return simulate_rl(grids, seeds, truth, rng)
    if claim in BF16_CLAIMS:
        return measured(simulate(shared_grids(arms, design, truth, rng), seeds, truth, rng), truth, rng)
    cells = {arm: around(truth.rates.best(arm), design.rates, rng) for arm in arms}
    if claim != "C6b":
        return simulate(cells, seeds, truth, rng, evaluations=10 if claim == "C6" else 1)
    # From half of what the larger of the truth and 2 bits fill up, to twice.
    full = max(2.0, truth.bits_per_parameter)
    loads = {replace(arm, variant=f"load {load:g}"): (arm, load) for arm in arms for load in (0.5, 2.0)}
    offered = {arm: load * full * arm.params for arm, (_, load) in loads.items()}
    return simulate({arm: cells[own] for arm, (own, _) in loads.items()}, seeds, truth, rng, offered=offered)


def simulate(
    cells: Rates,
    seeds: Sequence[int],
    truth: Truth,
    rng: np.random.Generator,
    *,
    evaluations: int = 1,
    offered: Mapping[Arm, float] | None = None,
) -> list[Outcome]:
    """One study, trained in one go: every arm at its rates with every seed; arguments as `SimulatedStudy.train`."""
    return SimulatedStudy(seeds, truth, rng).train(cells, evaluations=evaluations, offered=offered)


class SimulatedStudy:
    """A study that can be asked for more cells: what a seed gives all arms, and an arm in a seed, stays as drawn.

    Args:
        seeds: paired across arms by the part of the noise that they share.
        truth: what is drawn from.
        rng: all randomness comes from it.
    """

    def __init__(self, seeds: Sequence[int], truth: Truth, rng: np.random.Generator) -> None:
        self._seeds = seeds
        self._truth = truth
        self._rng = rng
        self._shared = rng.normal(0.0, truth.noise.shared, (len(seeds), 1))
        self._jitter: dict[Arm, Floats] = {}

    def train(self, cells: Rates, *, evaluations: int = 1, offered: Mapping[Arm, float] | None = None) -> list[Outcome]:
        """Outcomes of every arm at its rates with every seed.

        Args:
            cells: learning rates of each arm.
            evaluations: after step 0; the last one at the end, the others evenly in log steps from 2 % of the run.
            offered: bits to memorise, by arm, in a study of capacity.
        """
        truth, rng = self._truth, self._rng
        ranks = sorted({arm.rank for arm in cells if arm.rank is not None})
        largest = max(arm.batch_size for arm in cells)
        outcomes: list[Outcome] = []
        for arm, rates in cells.items():
            if arm not in self._jitter:
                self._jitter[arm] = rng.normal(0.0, truth.noise.jitter, self._shared.shape)
            steps = _steps(arm.steps, evaluations)
            common = truth.curve(arm, steps, ranks, largest)
            offset = np.log(rates) - math.log(truth.rates.best(arm))
            finals = self._shared + truth.rates.excess(offset - self._jitter[arm])
            finals = finals + rng.normal(0.0, truth.noise.run, finals.shape)
            # (seed, rate, split, step)
            losses = finals[:, :, None, None] + common
            losses = losses + rng.normal(0.0, truth.noise.split, (*finals.shape, 2, len(steps)))
            losses[..., 0] = START_LOSS
            bits = None if offered is None else (offered[arm], _stored(arm, offered[arm], finals, truth))
            outcomes += self._outcomes(arm, rates, steps, losses, offset > math.log(truth.rates.diverges), bits)
        return outcomes

    def _outcomes(
        self,
        arm: Arm,
        rates: Sequence[float],
        steps: tuple[int, ...],
        losses: Floats,
        diverged: NDArray[np.bool_],
        bits: tuple[float, Floats] | None,
    ) -> list[Outcome]:
        series: list[list[list[list[float]]]] = losses.tolist()
        lasts = [1 if gone else len(steps) for gone in diverged]
        return [
            Outcome(
                cell=f"{arm.label} {lr:.3g} {seed}",
                arm=arm,
                lr=lr,
                seed=seed,
                steps=steps[: lasts[k]],
                validation=tuple(series[row][k][0][: lasts[k]]),
                test=tuple(series[row][k][1][: lasts[k]]),
                diverged=bool(diverged[k]),
                offered_bits=None if bits is None else bits[0],
                stored_bits=None if bits is None else float(bits[1][row, k]),
            )
            for row, seed in enumerate(self._seeds)
            for k, lr in enumerate(rates)
        ]


def _moved(outcomes: list[Outcome], truth: Truth, rng: np.random.Generator) -> list[Outcome]:
    """The same outcomes with norms and kernels; the noise of each is that of log LR*."""
    found: list[Outcome] = []
    for outcome in outcomes:
        crossed, error = rng.normal(0.0, truth.noise.jitter, 2)
        dynamics = Dynamics(
            norm_a=(1.0,) * len(outcome.steps),
            norm_b=(0.0, *(math.exp(truth.norm_ratio + crossed),) * (len(outcome.steps) - 1)),
            kernel_alignment=truth.alignment + float(rng.normal(0.0, truth.noise.run)),
            kernel_error=math.exp(truth.kernel_slope * math.log(outcome.arm.rank or 1) + error),
        )
        found.append(replace(outcome, dynamics=dynamics))
    return found


def _steps(total: int, evaluations: int) -> tuple[int, ...]:
    ends = np.geomspace(max(1.0, 0.02 * total), total, evaluations) if evaluations > 1 else np.array([total])
    return (0, *sorted({round(float(step)) for step in ends}))


def _stored(arm: Arm, offered: float, finals: Floats, truth: Truth) -> Floats:
    """Bits held: all that is offered or what fits, less at a bad rate; the same noise as the losses', relative."""
    held = min(offered, truth.bits_per_parameter * arm.params)
    return np.minimum(offered, held * (1 - finals))


SCENARIOS: Mapping[str, Mapping[str, Truth]] = {
    "C2": {"equal drops": Truth(), "smallest rank slower by 10 %": Truth(early_difference=-0.1)},
    "C3": {
        "slope 0": Truth(),
        "slope 0.1": Truth(rates=RateTruth(rank_slope=0.1)),
        "slope 0.3": Truth(rates=RateTruth(rank_slope=0.3)),
    },
    "C4": {"ratio 10": Truth(), "ratio 3": Truth(rates=RateTruth(ratio=3.0))},
    "C5": {
        "slope -0.15": Truth(rates=RateTruth(length_slope=-0.15)),
        "slope 0.15": Truth(rates=RateTruth(length_slope=0.15)),
    },
    "C6": {"departure in order of rank": Truth(departure_slope=0.8), "in reverse": Truth(departure_slope=-0.5)},
    "C6b": {"1.5 bits": Truth(bits_per_parameter=1.5), "3 bits": Truth(bits_per_parameter=3.0)},
    "C7": {
        "attention 0.01 worse, MLP equal": Truth(attention_gap=0.01),
        "MLP 0.01 worse than all": Truth(attention_gap=0.02, mlp_gap=0.01),
    },
    "C8": {
        "gap grows by 0.005 a doubling": Truth(batch_growth=0.005, equal_growth=0.005),
        "gap shrinks by 0.005 a doubling": Truth(batch_growth=-0.005, equal_growth=-0.005),
    },
    "C7rl": {
        "attention 0.08 worse, MLP equal": Truth(attention_gap=0.08),
        "MLP 0.06 worse than all": Truth(attention_gap=0.12, mlp_gap=0.06),
    },
    "C9": {"equal": Truth(), "0.015 lower": Truth(regret=0.015), "0.06 lower": Truth(regret=0.06)},
    "C9b": {
        "equally fast": Truth(),
        "1.25 times the steps": Truth(rl=RLTruth(steps_ratio=1.25)),
        "2.5 times the steps": Truth(rl=RLTruth(steps_ratio=2.5)),
    },
    "C10": {
        "0.2 decades wider": Truth(rl=RLTruth(plateau_gain=0.2)),
        "0.6 decades wider": Truth(rl=RLTruth(plateau_gain=0.6)),
        "0.6 decades narrower": Truth(rl=RLTruth(plateau=0.9, plateau_gain=-0.6)),
    },
    "C11": {"B passes A, kernels align": Truth(), "B stays below A": Truth(norm_ratio=-0.5)},
    "C13": {
        "swallowed as measured": Truth(),
        "all acts": Truth(swallowed=SwallowedTruth(lora=1.0, full=1.0)),
    },
    "C13b": {
        "0.8 of the drop": Truth(),
        "the whole drop": Truth(swallowed=SwallowedTruth(trajectory=1.0)),
    },
    "C13c": {"0.3 decades higher": Truth(rates=RateTruth(lora_shift=0.3)), "unmoved": Truth()},
    "C13d": {"0.3 decades higher": Truth(rates=RateTruth(full_shift=0.3)), "unmoved": Truth()},
    "C13e": {"unmoved": Truth(), "0.3 decades lower": Truth(rates=RateTruth(full_shift=0.3))},
    "certify": {"regret 0": Truth(), "regret 0.002": Truth(regret=0.002), "regret 0.01": Truth(regret=0.01)},
}
"""Truths that a table of power shows, by claim: such as science.md expects, and such as would refute it."""


def power_table(question: QuestionSpec, *, studies: int = 300) -> list[dict[str, str | int | float]]:
    """What a question's seeds, ranks and margins would give under each of `SCENARIOS`; one row a truth.

    The noise is that of `Noise`; a study's own is known only after it ran, and findings then say how many seeds to add.

    Args:
        question: as it would be asked. A protocol without a claim over seeds has no rows.
        studies: simulated for each row.
    """
    margins = Margins.of(question.margins)
    return [
        {"claim": claim, "truth": name, "seeds": len(question.seeds)}
        | _shares(claim, truth, question, margins, studies)
        for claim in CLAIMS_OF.get(question.protocol, ())
        for name, truth in SCENARIOS[claim].items()
    ]


def _shares(claim: str, truth: Truth, question: QuestionSpec, margins: Margins, studies: int) -> dict[str, float]:
    rates = power(claim, truth, seeds=len(question.seeds), studies=studies, margins=margins, design=Design.of(question))
    return {"supported": rates.supported, "contradicted": rates.contradicted, "inconclusive": rates.inconclusive}
