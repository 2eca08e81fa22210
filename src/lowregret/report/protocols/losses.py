"""What an arm loses at its best rate: against full fine-tuning by rank and by batch size, and by trained parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

from lowregret.report.curves import rank_style
from lowregret.report.protocols.asked import Asked, arm_styles, by_arm, by_seed
from lowregret.report.protocols.chart import Chart, Level, by_seeds, dodged, value_axis, with_intervals
from lowregret.specs import Arm
from lowregret.studies.claims.arms import primary_full, primary_lora
from lowregret.studies.claims.c8_batch import EQUAL_STEPS
from lowregret.studies.estimators import tuned_differences
from lowregret.studies.outcome import Outcome
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, Surface, aligned

BITS_PER_PARAMETER = 2.0
"""Of the capacity line: facts stored per parameter after long training (science.md section 2)."""
NEAR = 8.0
"""Times the smallest or largest rank within which the capacity line is drawn; further off it would be all there is."""


def regret_against_rank(asked: Asked) -> tuple[Chart, ...]:
    """Regret of every rank, with the margin of parity and the rank whose bits reach the data's."""
    ranks = {arm: surface for arm, surface in asked.surfaces.items() if primary_lora(arm)}
    full = [surface for arm, surface in asked.surfaces.items() if primary_full(arm)]
    if not ranks or len(full) != 1:
        return ()
    found: dict[float, Floats] = {}
    refused: list[str] = []
    for arm, surface in sorted(ranks.items(), key=lambda item: item[0].rank or 0):
        regret = _regret(surface, full[0])
        if isinstance(regret, Refused):
            refused.append(regret.reason)
        else:
            found[float(arm.rank or 0)] = regret
    if not found:
        return ()
    line, capacity = _capacity_line(asked, next(iter(ranks)), found)
    parity = asked.margins.parity
    left_out = f" Left out: {'; '.join(dict.fromkeys(refused))}." if refused else ""
    chart = Chart(
        key=f"{asked.key}-regret",
        title="Regret against rank",
        x_title="rank (log scale)",
        y_title="test NLL of LoRA minus FullFT (nats per token)",
        x_log=True,
        series=(with_intervals("LoRA minus FullFT", found, rank_style(0, 2)),),
        caption="Each arm at the learning rate that validation chose, paired by seed; mean with the 95 % t interval. "
        f"Shaded: parity.{capacity}{left_out}",
        ticks=value_axis(tuple(found)),
        levels=(Level(axis="y", low=-parity, high=parity, text=f"parity: ±{parity:g}"), *line),
    )
    return (chart,)


def _regret(lora: Surface, full: Surface) -> Floats | Refused:
    try:
        one, other = aligned({lora.arm: lora, full.arm: full}, 2).values()
        return tuned_differences(one, other)
    except Refused as refused:
        return refused


def _capacity_line(asked: Asked, arm: Arm, found: dict[float, Floats]) -> tuple[tuple[Level, ...], str]:
    """The rank whose parameters hold the data's bits, and what the caption says of it."""
    bits = asked.first_pass_bits
    if bits is None:
        return (), (
            " No capacity line: it needs the log loss of the first pass over the data, and records keep the last pass."
        )
    assert arm.rank is not None
    rank = bits / BITS_PER_PARAMETER / (arm.params / arm.rank)
    text = (
        f" Capacity line: at rank {rank:.3g} the adapter's parameters times {BITS_PER_PARAMETER:g} bits are the "
        f"{bits / 1000:.3g} kbit that the data holds at most (summed log loss of the first pass)"
    )
    if not min(found) / NEAR <= rank <= max(found) * NEAR:
        return (), f"{text}; it lies outside the figure."
    return (Level(axis="x", low=rank, high=rank, text="capacity: 2 bits x parameters = bits of the data"),), f"{text}."


def gap_against_batch(asked: Asked) -> tuple[Chart, ...]:
    """What LoRA loses against full fine-tuning, each at its best rate, by batch size (paper, figure 3)."""
    tuned = tuned_test_losses(asked.outcomes)
    full = {(arm.batch_size, arm.steps): losses for arm, losses in tuned.items() if arm.method == "full"}
    fewest = {arm.steps for arm in tuned if arm.variant == EQUAL_STEPS}
    lines: dict[tuple[int, str], dict[float, list[float]]] = defaultdict(dict)
    for arm, losses in tuned.items():
        reference = full.get((arm.batch_size, arm.steps))
        if arm.rank is None or reference is None:
            continue
        gaps = [losses[seed] - reference[seed] for seed in losses.keys() & reference.keys()]
        if gaps:
            lines[arm.rank, arm.variant][float(arm.batch_size)] = gaps
            if not arm.variant and arm.steps in fewest:  # the largest batch is its own control
                lines[arm.rank, EQUAL_STEPS][float(arm.batch_size)] = gaps
    if not lines:
        return ()
    ranks, variants = sorted({rank for rank, _ in lines}), sorted({variant for _, variant in lines})
    chart = Chart(
        key=f"{asked.key}-gap",
        title="Gap to full fine-tuning against batch size",
        x_title="sequences a step (log scale)",
        y_title="test NLL of LoRA minus FullFT (nats per token)",
        x_log=True,
        series=tuple(
            by_seeds(
                f"r{rank} {variant}".strip(),
                dict(sorted(gaps.items())),
                rank_style(ranks.index(rank), len(ranks), variants.index(variant)),
            )
            for (rank, variant), gaps in sorted(lines.items())
        ),
        caption="Each arm at the learning rate that validation chose; mean over seeds, band from the smallest to the "
        f"largest seed. {EQUAL_STEPS}: every batch size trains for as many steps as the largest does, so that the "
        "number of steps does not differ.",
        ticks=value_axis([batch for gaps in lines.values() for batch in gaps]),
    )
    return (chart,)


def loss_against_parameters(asked: Asked) -> tuple[Chart, ...]:
    """Tuned loss against trained parameters, a line for each set of layers (paper, figures 4 and 5)."""
    lines: dict[str, dict[float, list[float]]] = defaultdict(dict)
    shown: dict[str, Arm] = {}
    for arm, losses in tuned_test_losses(asked.outcomes).items():
        name = "full" if arm.method == "full" else "+".join(arm.targets)
        lines[name][float(arm.params)] = list(losses.values())
        shown.setdefault(name, arm)
    if not lines:
        return ()
    styles = arm_styles(list(shown.values()))
    series = [
        by_seeds(name, dict(sorted(lines[name].items())), replace(styles[arm], dash="solid"), kind="bars")
        for name, arm in shown.items()
    ]
    chart = Chart(
        key=f"{asked.key}-parameters",
        title="Tuned loss against trained parameters",
        x_title="trained parameters (log scale)",
        y_title="test NLL (nats per token)",
        x_log=True,
        series=dodged(series),
        caption="Each arm at the learning rate that validation chose, by the layers that carry adapters; mean over "
        "seeds, bars from the smallest to the largest seed; lines stand a little apart sideways.",
    )
    return (chart,)


def tuned_test_losses(outcomes: tuple[Outcome, ...]) -> dict[Arm, dict[int, float]]:
    """By arm and seed, the test loss at the learning rate that validation chose."""
    tuned: dict[Arm, dict[int, float]] = {}
    for arm, own in by_arm(outcomes).items():
        for seed, cells in by_seed(own).items():
            chosen = min(cells, key=lambda outcome: outcome.final_validation)
            if math.isfinite(chosen.final_test):
                tuned.setdefault(arm, {})[seed] = chosen.final_test
    return tuned
