"""How adapters move: the first steps' loss drop by rank (paper, figure 9), the norms of A and B, the tangent kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lowregret.report.curves import log_step, rank_style
from lowregret.report.protocols.asked import Asked
from lowregret.report.protocols.chart import (
    Chart,
    Level,
    Series,
    by_seeds,
    guide,
    step_axis,
    value_axis,
    with_intervals,
)
from lowregret.specs import Arm
from lowregret.store.study import Dynamics
from lowregret.studies.claims.arms import primary_lora
from lowregret.studies.claims.c2_first_steps import FIRST_STEPS
from lowregret.studies.claims.c11_dynamics import EXPECTED_SLOPE, HIGH_RANK
from lowregret.studies.estimators import pointwise_minimum
from lowregret.studies.students_t import Floats
from lowregret.studies.surface import Refused, Surface, aligned


def early_drops(asked: Asked) -> tuple[Chart, ...]:
    """Each rank's loss drop over the largest rank's at each of the first steps."""
    try:
        found = aligned(_by_rank(asked.surfaces), 2)
    except Refused:
        return ()
    drops = {arm: _drops(surface) for arm, surface in found.items()}
    if len(drops) < 2:
        return ()
    largest, reference = drops.popitem()
    styles = asked.styles
    series: list[Series] = []
    for arm, own in drops.items():
        points = {
            log_step(step): 100 * (own[step] / drop - 1)
            for step, drop in reference.items()
            if step in own and (drop > 0).all()
        }
        if points:
            series.append(with_intervals(asked.names[arm], points, styles[arm], kind="line"))
    if not series:
        return ()
    margin = 100 * asked.margins.early_drop
    chart = Chart(
        key=f"{asked.key}-drops",
        title=f"Loss drop of the first steps, relative to rank {largest.rank}",
        x_title="optimizer steps (log scale)",
        y_title=f"loss drop against rank {largest.rank}'s (percent)",
        x_log=True,
        series=tuple(series),
        caption="How much more or less the test NLL has fallen than at the largest rank, same learning rate, paired by "
        "seed; mean with the 95 % t interval. Shaded: what counts as equal at the last step.",
        ticks=step_axis(max(reference))[1:],
        levels=(Level(axis="y", low=-margin, high=margin, text=f"equal: ±{margin:g} percent"),),
    )
    return (chart,)


def _drops(surface: Surface) -> dict[int, Floats]:
    """Fall of the test loss since step 0, by step, per seed; only steps that every seed reached."""
    steps, losses = pointwise_minimum(surface)
    return {
        step: losses[:, 0] - losses[:, k]
        for k, step in enumerate(steps)
        if 0 < step <= FIRST_STEPS and np.isfinite(losses[:, [0, k]]).all()
    }


def dynamics(asked: Asked) -> tuple[Chart, ...]:
    """Norms of A and B over steps; error and alignment of the tangent kernel by rank."""
    moved = {arm: own for arm, surface in _by_rank(asked.surfaces).items() if (own := _dynamics(surface))}
    if not moved:
        return ()
    errors = {float(arm.rank or 0): np.log([one.kernel_error for one in own]) for arm, own in moved.items()}
    aligned_by = {float(arm.rank or 0): np.array([one.kernel_alignment for one in own]) for arm, own in moved.items()}
    first = min(errors)
    expected = {rank: float(np.exp(errors[first].mean())) * (rank / first) ** EXPECTED_SLOPE for rank in sorted(errors)}
    style = rank_style(0, 2)
    error = Chart(
        key=f"{asked.key}-kernel-error",
        title="Kernel error against rank, before training",
        x_title="rank (log scale)",
        y_title="relative kernel error (log scale)",
        x_log=True,
        y_log=True,
        series=(
            with_intervals("kernel error", errors, style, exponential=True),
            guide(f"rank^{EXPECTED_SLOPE:g}", expected),
        ),
        caption="Distance of the adapter's tangent kernel at B = 0 from its expectation over A, relative; geometric "
        "mean over seeds with the 95 % t interval. Dashed: the fall of a mean of r independent terms.",
        ticks=value_axis(tuple(errors)),
    )
    least = asked.margins.alignment
    alignment = Chart(
        key=f"{asked.key}-kernel-alignment",
        title="Kernel alignment against rank, before training",
        x_title="rank (log scale)",
        y_title="cosine with the expected kernel",
        x_log=True,
        series=(with_intervals("alignment", aligned_by, style),),
        caption=f"Mean over seeds with the 95 % t interval. Ranks from {HIGH_RANK} up must reach the margin.",
        ticks=value_axis(tuple(errors)),
        levels=(Level(axis="y", low=least, high=least, text=f"margin: {least:g}"),),
    )
    return (_norms(asked, moved), error, alignment)


def _norms(asked: Asked, moved: Mapping[Arm, list[Dynamics]]) -> Chart:
    series: list[Series] = []
    last = 0
    for arm, own in moved.items():
        steps = next(outcome.steps for outcome in asked.surfaces[arm].outcomes if outcome.dynamics is own[0])
        last = max(last, steps[-1])
        for name, dash, norms in (("B", "solid", _norm_b), ("A", "dot", _norm_a)):
            # B is zero before the first step, which a logarithmic axis does not have.
            values = {log_step(step): [norms(one)[k] for one in own] for k, step in enumerate(steps)}
            points = {x: norm for x, norm in values.items() if min(norm) > 0}
            style = replace(asked.styles[arm], dash=dash)
            series.append(by_seeds(f"{asked.names[arm]}, {name}", points, style))
    return Chart(
        key=f"{asked.key}-norms",
        title="Spectral norms of A and B",
        x_title="optimizer steps (log scale)",
        y_title="spectral norm (log scale)",
        x_log=True,
        y_log=True,
        series=tuple(series),
        caption="Solid: B, which starts at zero. Dotted: A. Geometric mean over matrices; mean over seeds, band from "
        "the smallest to the largest.",
        ticks=step_axis(last),
    )


def _norm_a(moved: Dynamics) -> tuple[float, ...]:
    return moved.norm_a


def _norm_b(moved: Dynamics) -> tuple[float, ...]:
    return moved.norm_b


def _dynamics(surface: Surface) -> list[Dynamics]:
    """Of each seed that was logged and did not diverge."""
    return [one.dynamics for one in surface.outcomes if one.dynamics is not None and not one.diverged]


def _by_rank(found: Mapping[Arm, Surface]) -> dict[Arm, Surface]:
    arms = sorted((arm for arm in found if primary_lora(arm)), key=lambda arm: arm.rank or 0)
    return {arm: found[arm] for arm in arms}
