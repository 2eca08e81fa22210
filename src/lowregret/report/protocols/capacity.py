"""Bits that adapters hold of random facts: against their parameters, and against what they were offered."""

from __future__ import annotations

from collections import defaultdict

from lowregret.report.curves import rank_style
from lowregret.report.protocols.asked import Asked
from lowregret.report.protocols.chart import Chart, Series, by_seeds, guide

BITS_A_PARAMETER = (1.0, 2.0)
"""Of the lines: our pilot's order, and what facts take after long training (science.md section 2)."""


def stored_bits(asked: Asked) -> tuple[Chart, ...]:
    """The most bits of every adapter against its parameters, and bits held against bits offered."""
    most: dict[int, dict[int, float]] = defaultdict(dict)
    by_load: dict[tuple[int, int], dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for outcome in asked.outcomes:
        arm, stored, offered = outcome.arm, outcome.stored_bits, outcome.offered_bits
        if arm.rank is None or stored is None or not offered:
            continue
        seed = outcome.seed
        most[arm.params][seed] = max(stored, most[arm.params].get(seed, 0.0))
        held = by_load[arm.rank, arm.params][offered]
        held[seed] = max(stored, held.get(seed, 0.0))
    if not most:
        return ()
    return _against_parameters(asked, most), _against_offered(asked, by_load)


def _against_parameters(asked: Asked, most: dict[int, dict[int, float]]) -> Chart:
    sizes = sorted(most)
    lines = [
        guide(f"{bits:g} bit{'s' if bits > 1 else ''} a parameter", {float(size): bits * size for size in sizes})
        for bits in BITS_A_PARAMETER
    ]
    held = by_seeds("most bits held", {float(size): list(most[size].values()) for size in sizes}, rank_style(0, 2))
    return Chart(
        key=f"{asked.key}-bits",
        title="Stored bits against adapter parameters",
        x_title="adapter parameters (log scale)",
        y_title="bits held (log scale)",
        x_log=True,
        y_log=True,
        series=(held, *lines),
        caption="Of each adapter and seed the most over numbers of facts and learning rates; mean over seeds, band "
        "from the smallest to the largest seed. Bits held are a lower bound, N H minus the loss of the last pass.",
    )


def _against_offered(asked: Asked, by_load: dict[tuple[int, int], dict[float, dict[int, float]]]) -> Chart:
    adapters = sorted(by_load)
    series: list[Series] = []
    for place, (rank, params) in enumerate(adapters):
        points = {offered: list(held.values()) for offered, held in sorted(by_load[rank, params].items())}
        series.append(by_seeds(f"r{rank}", points, rank_style(place, len(adapters)), kind="bars"))
    offered = sorted({x for one in series for x in one.x})
    series.append(guide("all that was offered", {x: x for x in offered}))
    return Chart(
        key=f"{asked.key}-offered",
        title="Stored bits against offered bits",
        x_title="bits of all facts (log scale)",
        y_title="bits held (log scale)",
        x_log=True,
        y_log=True,
        series=tuple(series),
        caption="By rank, at the learning rate that held most; mean over seeds, bars from the smallest to the largest "
        "seed. Where a rank leaves the dashed line it is full.",
    )
