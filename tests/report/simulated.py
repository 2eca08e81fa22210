"""Questions with simulated cells, and a study directory that holds them as if they had been trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowregret.specs import (
    AdapterSpec,
    Arm,
    DataSpec,
    FullSpec,
    ModelSpec,
    OptimSpec,
    PlannedBank,
    PlannedCell,
    QuestionSpec,
    RewardSpec,
    RLSpec,
    RunSpec,
    SlotSpec,
    StudyPlan,
    StudySpec,
    TrainSpec,
)
from lowregret.store import collect_environment
from lowregret.store.study import CellRecord, StudyDirectory
from lowregret.studies.claims import CLAIMS, CLAIMS_OF, c12
from lowregret.studies.designs import THIRD_DECADE, arms_of, around
from lowregret.studies.outcome import Outcome
from lowregret.studies.simulate import Design, RateTruth, RLTruth, Truth, draw, simulate
from lowregret.studies.simulate_fidelity import measured, shared_grids
from lowregret.studies.simulate_rl import simulate_rl
from studies.cells import cells, full, lora

Asked = tuple[QuestionSpec, list[Outcome]]
RL = RLSpec(rewards=(RewardSpec(source="exact"),), group=8)


def question(protocol: str, **fields: Any) -> QuestionSpec:
    """A question as a spec file would ask it."""
    return QuestionSpec(protocol=protocol, data=DataSpec(source="markov"), **fields)


def claim_question(protocol: str, claim: str, *, truth: Truth | None = None, seeds: int = 5) -> Asked:
    """A protocol with the cells of a simulated study of one of its claims."""
    truth = truth or Truth()
    return question(protocol), draw(claim, truth, Design(), range(seeds), np.random.default_rng(1))


def trained(arms: Sequence[Arm], truth: Truth, *, seeds: int = 3, evaluations: int = 8) -> list[Outcome]:
    """Every arm on a grid of seven rates around its best."""
    rng = np.random.default_rng(2)
    grids = {arm: around(truth.rates.best(arm), 7, rng) for arm in arms}
    return simulate(grids, range(seeds), truth, rng, evaluations=evaluations)


def rank_question() -> Asked:
    """Small ranks run out of capacity; one cell of rank 1 was stopped early and one diverged."""
    arms = [*(lora(rank) for rank in (1, 4, 16, 64)), full()]
    outcomes = trained(arms, Truth(departure_slope=0.8))
    first = [o for o in outcomes if o.arm == arms[0] and o.seed == 0]
    highest = max(first, key=lambda outcome: outcome.lr)
    lowest = min(first, key=lambda outcome: outcome.lr)
    spoilt = {
        lowest.cell: replace(lowest, diverged=True, stopped=True),
        highest.cell: replace(highest, diverged=True),
    }
    return question("rank"), [spoilt.get(outcome.cell, outcome) for outcome in outcomes]


def ratio_question() -> Asked:
    """Three widths, run lengths and alphas."""
    arms: list[Arm] = []
    for width in (64, 128, 256):
        for steps in (30, 100, 300):
            arms += [lora(16, alpha=alpha, width=width, steps=steps) for alpha in (8.0, 32.0, 128.0)]
            arms.append(full(width=width, steps=steps))
    return question("ratio"), trained(arms, Truth())


def capacity_question() -> Asked:
    """Random facts, two loads an adapter."""
    outcomes = draw("C6b", Truth(), Design(), range(3), np.random.default_rng(1))
    return question("capacity"), [
        replace(outcome, arm=replace(outcome.arm, offered_bits=outcome.offered_bits or 0.0)) for outcome in outcomes
    ]


def cost_question() -> Asked:
    """LoRA takes 0.68 of the arithmetic and 0.8 of the time."""
    pair = ((lora(multiply_adds=68.0), 8.0), (full(multiply_adds=100.0), 10.0))
    return question("cost"), [
        replace(one, multiply_adds=arm.multiply_adds * arm.steps, seconds=took * (1 + 0.01 * one.seed))
        for arm, took in pair
        for one in cells(arm, lambda rate, seed: 1.0, rates=(1e-3,), seeds=range(3))
    ]


def invariance_question() -> Asked:
    """Exact with eps 0 and corrected, off by 1e-4 where nothing was corrected."""

    def run(p: float, q: float, kind: str, loss: float) -> list[Outcome]:
        arm = lora(4, alpha=32 / (p * q), variant=f"p {p:g}, q {q:g}, {kind}")
        return cells(arm, lambda rate, seed: loss, rates=(2e-3,), seeds=(0,))

    runs = [*run(1, 1, "eps 0", 2.0), *run(1, 1, "corrected", 2.1)]
    for p, q in ((2.0, 0.5), (4.0, 2.0)):
        runs += [*run(p, q, "eps 0", 2.0), *run(p, q, "corrected", 2.1), *run(p, q, "uncorrected", 2.1002)]
    return question("invariance", seeds=(0,)), runs


def fidelity_question() -> Asked:
    """Both arithmetics of rank 16 and of full fine-tuning; the usual one learns less and wants higher rates."""
    truth = Truth(rates=RateTruth(lora_shift=0.15, full_shift=0.3))
    design, rng = Design(ranks=(16,)), np.random.default_rng(4)
    arms = arms_of("C13", design)
    outcomes = simulate(shared_grids(arms, design, truth, rng), range(3), truth, rng, evaluations=6)
    return question("fidelity"), measured(outcomes, truth, rng)


def rl_question() -> Asked:
    """Three ranks and full fine-tuning on eight seeds, with plateaus and policies that collapse."""
    rng = np.random.default_rng(3)
    truth = Truth(rl=RLTruth(plateau_gain=0.3, steps_ratio=1.2), regret=0.01)
    arms = [*(lora(rank, steps=120) for rank in (1, 4, 32)), full(steps=120)]
    grids = {arm: around(truth.rates.best(arm), 7, rng, factor=THIRD_DECADE) for arm in arms}
    return question("rl", rl=RL), simulate_rl(grids, range(8), truth, rng)


def rl_layers_question() -> Asked:
    """Attention-only ends lower."""
    outcomes = draw("C7rl", Truth(attention_gap=0.15), Design(), range(8), np.random.default_rng(1))
    return question("rl-layers", rl=RL), outcomes


def every_question() -> list[Asked]:
    """One question of each protocol."""
    return [
        rank_question(),
        claim_question("learning-rate", "C3"),
        claim_question("layers", "C7", truth=Truth(attention_gap=0.02)),
        claim_question("batch-size", "C8", truth=Truth(batch_growth=0.01, equal_growth=0.01), seeds=3),
        claim_question("early", "C2"),
        invariance_question(),
        claim_question("dynamics", "C11"),
        cost_question(),
        capacity_question(),
        ratio_question(),
        fidelity_question(),
        claim_question("certify", "certify"),
        rl_question(),
        rl_layers_question(),
    ]


def write_study(path: Path, asked: Sequence[Asked], *, name: str = "simulated") -> StudyDirectory:
    """The directory that training these cells would have left, without its banks."""
    spec = StudySpec(name=name, model=ModelSpec(source="micro"), questions=tuple(one for one, _ in asked))
    environment = collect_environment(threads=1, command=("lowregret", "study"))
    planned: list[PlannedCell] = []
    with StudyDirectory.create(path, spec=spec, environment=environment) as study:
        for index, (_, outcomes) in enumerate(asked):
            for place, outcome in enumerate(outcomes):
                cell = f"{index:02d}{place:06d}"
                planned.append(
                    PlannedCell(cell=cell, question=index, arm=outcome.arm, lr=outcome.lr, seed=outcome.seed)
                )
                study.write_cell_spec(cell, _run(outcome))
                study.write_record(_record(cell, outcome))
        banks = (PlannedBank(bank="b1", cells=tuple(one.cell for one in planned)),)
        study.write_plan(StudyPlan(cells=tuple(planned), banks=banks))
        study.write_findings([finding for one, outcomes in asked for finding in _findings(one, outcomes)])
    return study


def _run(outcome: Outcome) -> RunSpec:
    arm = outcome.arm
    weights = FullSpec() if arm.rank is None else AdapterSpec(rank=arm.rank, alpha=arm.alpha, init_seed=outcome.seed)
    slot = SlotSpec(name="cell", weights=weights, optim=OptimSpec(lr=outcome.lr), data_seed=outcome.seed)
    train = TrainSpec(steps=arm.steps, batch_size=arm.batch_size, num_samples=0)
    return RunSpec(model=ModelSpec(source="micro"), data=DataSpec(source="markov"), slots=(slot,), train=train)


def _record(cell: str, outcome: Outcome) -> CellRecord:
    lost = (outcome.offered_bits or 0.0) - (outcome.stored_bits or 0.0)
    return CellRecord(
        cell=cell,
        bank="b1",
        steps=outcome.steps,
        validation=outcome.validation,
        test=outcome.test,
        diverged=outcome.diverged and not outcome.stopped,
        tokens=640,
        last_epoch_nats=lost * math.log(2) if lost else 1000.0,
        seconds=outcome.seconds or 1.0,
        stopped=outcome.stopped,
        dynamics=outcome.dynamics,
        fidelity=outcome.fidelity,
    )


def _findings(asked: QuestionSpec, outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """As `findings.json` holds them, without Holm's correction."""
    found = [CLAIMS[claim](outcomes, model="micro") for claim in CLAIMS_OF.get(asked.protocol, ())]
    if asked.protocol == "cost":
        found.append(c12(outcomes, model="micro"))
    return [asdict(finding) | {"details": dict(finding.details)} for finding in found]
