"""What a study's figures show, as plain series: one description that the page and the printed figures both draw.

No drawing here, and no judging: losses come from finished cells, verdicts from `findings.json`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from lowregret.report.curves import Style, full_style, log_step, rank_style
from lowregret.specs import Arm, QuestionSpec
from lowregret.studies.outcome import Outcome

Losses = Mapping[int, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart, with a band where seeds differ.

    >>> Series(name="r8", x=(1.0, 2.0), y=(2.0, 1.5), low=(1.9, 1.4), high=(2.1, 1.6), style=full_style()).y[-1]
    1.5
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    """Smallest over the seeds; equal to `y` where there is one."""
    high: tuple[float, ...]
    style: Style
    note: tuple[str, ...] = ()
    """What the reader sees on hovering, by point."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure.

    >>> Chart(key="rank-u", title="t", x_title="x", y_title="y", x_log=True, series=(), caption="c").x_log
    True
    """

    key: str
    """File name of the printed figure."""
    title: str
    x_title: str
    y_title: str
    x_log: bool
    series: tuple[Series, ...]
    caption: str
    """What is drawn and how to read it."""
    ticks: tuple[tuple[float, str], ...] = ()
    """Places and texts of the x axis; empty: as the drawing library chooses."""


def charts_of(index: int, question: QuestionSpec, outcomes: Sequence[Outcome]) -> tuple[Chart, ...]:
    """The figures of one question: learning curves and U-curves always, and what its protocol is about.

    Args:
        index: of the question, for the files' names.
        question: as asked.
        outcomes: its finished cells.
    """
    if not outcomes:
        return ()
    styles = arm_styles([outcome.arm for outcome in outcomes])
    key = f"{index + 1}-{question.protocol}"
    charts = [learning_curves(key, outcomes, styles), u_curves(key, outcomes, styles)]
    more = _BY_PROTOCOL.get(question.protocol)
    return tuple(chart for chart in (*charts, more(key, outcomes, styles) if more else None) if chart is not None)


def arm_styles(arms: Sequence[Arm]) -> dict[Arm, Style]:
    """Colour by rank, dash by what else differs; the same in every figure of a question."""
    ranks = sorted({arm.rank for arm in arms if arm.rank is not None})
    kinds: dict[int | None, list[Arm]] = defaultdict(list)
    styles: dict[Arm, Style] = {}
    for arm in dict.fromkeys(arms):
        place = len(kinds[arm.rank])
        kinds[arm.rank].append(arm)
        styles[arm] = full_style(place) if arm.rank is None else rank_style(ranks.index(arm.rank), len(ranks), place)
    return styles


def arm_names(arms: Sequence[Arm]) -> dict[Arm, str]:
    """Labels that tell the arms of a question apart: batch size, length and width join where they differ."""
    known = list(dict.fromkeys(arms))
    names = {arm: arm.label for arm in known}
    for field, text in (("batch_size", "B"), ("steps", "steps "), ("width", "d")):
        if len(set(names.values())) < len(known) and len({getattr(arm, field) for arm in known}) > 1:
            names = {arm: f"{name} {text}{getattr(arm, field)}" for arm, name in names.items()}
    return names


def learning_curves(key: str, outcomes: Sequence[Outcome], styles: Mapping[Arm, Style]) -> Chart:
    """Test loss against log steps, at each step the smallest over the learning rates (paper, figure 1)."""
    names = arm_names([outcome.arm for outcome in outcomes])
    series: list[Series] = []
    for arm, own in by_arm(outcomes).items():
        best: dict[int, list[float]] = defaultdict(list)
        for cells in by_seed(own).values():
            for step, loss in pointwise_minimum(cells).items():
                best[step].append(loss)
        series.append(_series(names[arm], {log_step(step): best[step] for step in sorted(best)}, styles[arm]))
    last = max(outcome.steps[-1] for outcome in outcomes if outcome.steps)
    return Chart(
        key=f"{key}-curves",
        title="Learning curves",
        x_title="optimizer steps (log scale)",
        y_title="test NLL (nats per token)",
        x_log=True,
        series=tuple(series),
        caption="At each step the smallest loss over the learning rates; mean over seeds, band from the smallest to "
        "the largest seed.",
        ticks=tuple((log_step(step), str(step)) for step in (0, *(1 << k for k in range(last.bit_length())))),
    )


def u_curves(key: str, outcomes: Sequence[Outcome], styles: Mapping[Arm, Style]) -> Chart | None:
    """Final test loss against the learning rate (paper, figure 2); none where nothing was swept."""
    names = arm_names([outcome.arm for outcome in outcomes])
    series: list[Series] = []
    for arm, own in by_arm(outcomes).items():
        by_rate: dict[float, list[float]] = defaultdict(list)
        for outcome in own:
            if math.isfinite(outcome.final_test):
                by_rate[outcome.lr].append(outcome.final_test)
        if by_rate:
            series.append(_series(names[arm], {lr: by_rate[lr] for lr in sorted(by_rate)}, styles[arm]))
    if not any(len(one.x) > 1 for one in series):
        return None
    return Chart(
        key=f"{key}-rates",
        title="Final loss against learning rate",
        x_title="learning rate (log scale)",
        y_title="final test NLL (nats per token)",
        x_log=True,
        series=tuple(series),
        caption="Mean over seeds, band from the smallest to the largest seed. Cells that diverged are left out.",
    )


def gap_against_batch(key: str, outcomes: Sequence[Outcome], styles: Mapping[Arm, Style]) -> Chart | None:
    """What LoRA loses against full fine-tuning, each at its best rate, by batch size (paper, figure 3)."""
    tuned = tuned_test_losses(outcomes)
    lines: dict[tuple[int, str], dict[float, list[float]]] = defaultdict(dict)
    shown: dict[tuple[int, str], Arm] = {}
    full = {(arm.batch_size, arm.variant): losses for arm, losses in tuned.items() if arm.method == "full"}
    for arm, losses in tuned.items():
        reference = full.get((arm.batch_size, arm.variant))
        if arm.rank is None or reference is None:
            continue
        gaps = [losses[seed] - reference[seed] for seed in losses.keys() & reference.keys()]
        if gaps:
            lines[arm.rank, arm.variant][float(arm.batch_size)] = gaps
            shown.setdefault((arm.rank, arm.variant), arm)
    if not lines:
        return None
    return Chart(
        key=f"{key}-gap",
        title="Gap to full fine-tuning against batch size",
        x_title="sequences a step (log scale)",
        y_title="test NLL of LoRA minus FullFT (nats per token)",
        x_log=True,
        series=tuple(
            _series(f"r{rank} {variant}".strip(), {x: gaps[x] for x in sorted(gaps)}, styles[shown[rank, variant]])
            for (rank, variant), gaps in lines.items()
        ),
        caption="Each arm at the learning rate that validation chose. `equal steps`: every batch size trains for as "
        "many steps as the largest does, so that the number of steps does not differ.",
    )


def loss_against_rank(key: str, outcomes: Sequence[Outcome], styles: Mapping[Arm, Style]) -> Chart | None:
    """Tuned loss against rank, full fine-tuning as a level."""
    tuned = tuned_test_losses(outcomes)
    ranks = {float(arm.rank): list(losses.values()) for arm, losses in tuned.items() if arm.rank and not arm.variant}
    if len(ranks) < 2:
        return None
    arm = next(arm for arm in tuned if arm.rank)
    series = [_series("LoRA", {rank: ranks[rank] for rank in sorted(ranks)}, styles[arm])]
    for full, losses in tuned.items():
        if full.method == "full":
            ends = (min(ranks), max(ranks))
            series.append(_series("full", {end: list(losses.values()) for end in ends}, styles[full]))
    return Chart(
        key=f"{key}-regret",
        title="Tuned loss against rank",
        x_title="rank (log scale)",
        y_title="test NLL (nats per token)",
        x_log=True,
        series=tuple(series),
        caption="Each arm at the learning rate that validation chose; the level is full fine-tuning.",
        ticks=tuple((rank, f"{rank:g}") for rank in sorted(ranks)),
    )


def loss_against_parameters(key: str, outcomes: Sequence[Outcome], styles: Mapping[Arm, Style]) -> Chart | None:
    """Tuned loss against trained parameters, a line for each set of layers (paper, figure 4)."""
    lines: dict[str, dict[float, list[float]]] = defaultdict(dict)
    shown: dict[str, Arm] = {}
    for arm, losses in tuned_test_losses(outcomes).items():
        name = "full" if arm.method == "full" else "+".join(arm.targets)
        lines[name][float(arm.params)] = list(losses.values())
        shown.setdefault(name, arm)
    if not lines:
        return None
    return Chart(
        key=f"{key}-parameters",
        title="Tuned loss against trained parameters",
        x_title="trained parameters (log scale)",
        y_title="test NLL (nats per token)",
        x_log=True,
        series=tuple(_series(name, {x: ys[x] for x in sorted(ys)}, styles[shown[name]]) for name, ys in lines.items()),
        caption="Each arm at the learning rate that validation chose, by the layers that carry adapters.",
    )


_BY_PROTOCOL: dict[str, Callable[[str, Sequence[Outcome], Mapping[Arm, Style]], Chart | None]] = {
    "rank": loss_against_rank,
    "learning-rate": loss_against_rank,
    "batch-size": gap_against_batch,
    "layers": loss_against_parameters,
    "certify": loss_against_rank,
}


def by_arm(outcomes: Sequence[Outcome]) -> dict[Arm, list[Outcome]]:
    """The outcomes of each arm: adapters by rank, full fine-tuning last."""
    groups: dict[Arm, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.arm, []).append(outcome)
    return {arm: groups[arm] for arm in sorted(groups, key=lambda arm: math.inf if arm.rank is None else arm.rank)}


def by_seed(outcomes: Sequence[Outcome]) -> dict[int, list[Outcome]]:
    """The outcomes of each seed, in order."""
    groups: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.seed, []).append(outcome)
    return groups


def pointwise_minimum(outcomes: Sequence[Outcome]) -> dict[int, float]:
    """At each step the smallest test loss over the learning rates of one arm and seed."""
    best: dict[int, float] = {}
    for outcome in outcomes:
        for step, loss in zip(outcome.steps, outcome.test, strict=True):
            if math.isfinite(loss):
                best[step] = min(loss, best.get(step, math.inf))
    return best


def tuned_test_losses(outcomes: Sequence[Outcome]) -> dict[Arm, dict[int, float]]:
    """By arm and seed, the test loss at the learning rate that validation chose."""
    tuned: dict[Arm, dict[int, float]] = {}
    for arm, own in by_arm(outcomes).items():
        for seed, cells in by_seed(own).items():
            chosen = min(cells, key=lambda outcome: outcome.final_validation)
            if math.isfinite(chosen.final_test):
                tuned.setdefault(arm, {})[seed] = chosen.final_test
    return tuned


def _series(name: str, points: Mapping[float, Sequence[float]], style: Style) -> Series:
    return Series(
        name=name,
        x=tuple(points),
        y=tuple(fmean(losses) for losses in points.values()),
        low=tuple(min(losses) for losses in points.values()),
        high=tuple(max(losses) for losses in points.values()),
        style=style,
        note=tuple(f"{len(losses)} seed{'s' if len(losses) > 1 else ''}" for losses in points.values()),
    )
