"""The arms and learning rates of a simulated study of each claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lowregret.specs import Arm, QuestionSpec
from lowregret.specs.study import QUARTER_DECADE
from lowregret.studies.claims.c3_rank_free_rate import LEAST_RANK, TIED
from lowregret.studies.claims.c8_batch import EQUAL_STEPS
from lowregret.studies.swallowing import USUAL

THIRD_DECADE = 10 ** (1 / 3)
"""Between the rates of a study of reinforcement, whose plateau takes a wide grid."""
RL_SIZE = {"steps": 120, "batch_size": 64}
RL_CLAIMS = ("C7rl", "C9", "C9b", "C10")
BF16_CLAIMS = ("C13", "C13b", "C13c", "C13d", "C13e")
"""Of one protocol, whose arms come in pairs."""
PARAMS_PER_RANK = 1024
"""Of a simulated adapter: only ratios of counts matter."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a simulated study trains.

    >>> Design().rates
    7
    """

    ranks: tuple[int, ...] = (4, 16, 64)
    widths: tuple[int, ...] = (64, 128, 256)
    run_lengths: tuple[int, ...] = (100, 300, 1000)
    batch_sizes: tuple[int, ...] = (8, 32, 128)
    rates: int = 7
    """Learning rates of an arm around LR* as the planner would guess it: a quarter of a decade apart, a third in RL."""

    @classmethod
    def of(cls, question: QuestionSpec) -> Design:
        """As a study's question has it, where it says."""
        design = cls(ranks=question.ranks)
        if question.batch_sizes:
            design = replace(design, batch_sizes=question.batch_sizes)
        if question.run_lengths:
            design = replace(design, run_lengths=question.run_lengths)
        return design


def arms_of(claim: str, design: Design) -> tuple[Arm, ...]:
    """The arms that a claim compares."""
    return tuple(_ARMS[claim](design))


def around(best: float, points: int, rng: np.random.Generator, *, factor: float = QUARTER_DECADE) -> tuple[float, ...]:
    """Rates around LR*, off by up to half a spacing: nobody's grid is centred on the truth."""
    off = rng.uniform(-0.5, 0.5)
    return tuple(best * factor ** (k - (points - 1) / 2 + off) for k in range(points))


def _lora(rank: int, **fields: object) -> Arm:
    settings: dict[str, object] = {
        "method": "lora", "rank": rank, "params": rank * PARAMS_PER_RANK, "batch_size": 8, "steps": 1000, "width": 128
    }  # fmt: skip
    return Arm(**{**settings, **fields})  # pyright: ignore[reportArgumentType]


def _full(**fields: object) -> Arm:
    settings: dict[str, object] = {
        "method": "full", "params": 1_000_000, "batch_size": 8, "steps": 1000, "width": 128
    }  # fmt: skip
    return Arm(**{**settings, **fields})  # pyright: ignore[reportArgumentType]


def _early(design: Design) -> list[Arm]:
    return [_lora(rank, steps=20) for rank in design.ranks]


def _rank_free(design: Design) -> list[Arm]:
    ranks = [rank for rank in design.ranks if rank >= LEAST_RANK]
    tied = [_lora(rank, alpha=float(rank), variant=TIED) for rank in ranks]
    return [*(_lora(rank) for rank in ranks), *tied]


def _ratio(design: Design) -> list[Arm]:
    rank = design.ranks[0]
    return [arm for width in design.widths for arm in (_lora(rank, width=width), _full(width=width))]


def _run_length(design: Design) -> list[Arm]:
    rank = design.ranks[0]
    return [arm for steps in design.run_lengths for arm in (_lora(rank, steps=steps), _full(steps=steps))]


def _capacity(design: Design) -> list[Arm]:
    return [_lora(rank) for rank in design.ranks]


def _layers(design: Design) -> list[Arm]:
    params = design.ranks[0] * PARAMS_PER_RANK
    return [_lora(design.ranks[0], params=params, targets=(kind,)) for kind in ("attention", "mlp", "all")]


def _batch(design: Design) -> list[Arm]:
    most, examples = max(design.batch_sizes), 8000
    arms: list[Arm] = []
    for batch in design.batch_sizes:
        for variant, steps in (("", examples // batch), (EQUAL_STEPS, examples // most)):
            if variant and batch == most:
                continue
            settings = {"batch_size": batch, "steps": steps, "variant": variant}
            arms += [*(_lora(rank, **settings) for rank in design.ranks), _full(**settings)]
    return arms


def _certify(design: Design) -> list[Arm]:
    return [_lora(design.ranks[0]), _full()]


def _arithmetics(design: Design) -> list[Arm]:
    """Faithful arms without, usual ones with their variant."""
    faithful = [_lora(design.ranks[0]), _full()]
    return [twin for arm in faithful for twin in (arm, replace(arm, variant=USUAL[arm.method]))]


def _rl(design: Design) -> list[Arm]:
    return [_lora(design.ranks[0], **RL_SIZE), _full(**RL_SIZE)]


def _rl_layers(design: Design) -> list[Arm]:
    return [replace(arm, **RL_SIZE) for arm in _layers(design)]


_ARMS: Mapping[str, Callable[[Design], Sequence[Arm]]] = {
    "C2": _early,
    "C3": _rank_free,
    "C4": _ratio,
    "C5": _run_length,
    "C6": _capacity,
    "C6b": _capacity,
    "C7": _layers,
    "C8": _batch,
    "C7rl": _rl_layers,
    "C9": _rl,
    "C9b": _rl,
    "C10": _rl,
    "C11": _early,
    **dict.fromkeys(BF16_CLAIMS, _arithmetics),
    "certify": _certify,
}
