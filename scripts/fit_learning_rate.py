"""Fits the learning-rate estimate on Thinking Machines' published sweep, and shows what it is worth.

    python scripts/fit_learning_rate.py path/to/tinker_sft_sweep.csv [--check]

Writes `src/lowregret/planner/learning_rate_coefficients.py` (with `--check`: compares with it and exits 1 where it
differs) and prints, leave-one-model-out, the loss given up against the best grid point of each (model, rank).

The loss of a cell is a quadratic in log learning rate through its best grid point and the two neighbours. The
regression is linear in the coefficients: the squared distance of the log rate to the quadratic's vertex, weighted by
its curvature in percent of the loss, is what a wrong rate costs. The priors are the paper's law and `TYPICAL`.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowregret.planner.learning_rate import LAW_EXPONENTS, features, sweep_rate, thinking_machines_law

OUTPUT = Path(__file__).parent.parent / "src/lowregret/planner/learning_rate_coefficients.py"

WIDTHS = {"deepseek_v3": 7168, "kimi_k2": 7168, "kimi_k25": 7168, "gpt_oss": 2880}
"""Hidden sizes that the file leaves out, from the models' published configs."""

DIVERGED = 2.0
"""Test NLL above which a run has diverged and says nothing about the curve around the best rate."""

EDGE = 0.4
"""A vertex beyond the grid is moved to this far (in log rate) outside of it: the quadratic is not known farther out."""

NAMES = (
    "intercept", "rank", "width", "width:llama",
    "family:llama", "family:qwen", "family:qwen3_5", "family:latent", "family:nemotron", "family:gpt_oss",
)  # fmt: skip

TYPICAL = {
    "intercept": math.log(4e-4),
    "rank": 0.18,
    "width": -LAW_EXPONENTS["qwen"],
    "width:llama": LAW_EXPONENTS["qwen"] - LAW_EXPONENTS["llama"],
}
"""Prior means: median rank exponent of the sweep's models, width exponents of the paper's law; 0 for families."""

PRECISION = {"intercept": 0.01, "rank": 1.0, "width": 3.0, "width:llama": 3.0}
"""What moving a coefficient by one from its prior costs, in percent of loss; 1 for families."""

LAW_MODELS = ("Llama-3.1-8B", "Llama-3.2-1B", "Qwen3-8B-Base", "Qwen3-30B-A3B-Base")
"""Models of the paper that are in the sweep: law (constant rate) over fit (linear decay) is the schedule's factor."""
LAW_RANK = 32


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model at one rank: the runs over learning rates.

    >>> sorted(Cell.__dataclass_fields__)[:3]
    ['best', 'coefficients', 'hidden_size']
    """

    model: str
    model_type: str
    hidden_size: int | None
    rank: int
    coefficients: tuple[float, float, float]
    """Of the quadratic in log rate, highest power first."""
    vertex: float
    best: float
    """Lowest loss on the grid."""

    @property
    def weight(self) -> float:
        """Loss in percent per squared log rate."""
        return 100 * self.coefficients[0] / self.best

    def regret(self, rate: float) -> float:
        """Loss given up by this rate against the best grid point, percent; at least 0."""
        loss = float(np.polyval(self.coefficients, math.log(rate)))
        return max(0.0, 100 * (loss - self.best) / self.best)


def read_cells(path: Path) -> list[Cell]:
    """All cells with a quadratic: three rates or more and an upward curve."""
    losses: dict[tuple[str, str, int, int], dict[float, list[float]]] = {}
    with path.open(newline="") as handle:
        for row in csv.DictReader(handle):
            loss = float(row["test_nll"])
            if loss < DIVERGED:
                width = int(row["hidden_size"] or WIDTHS.get(row["model_type"], 0))
                key = (row["model"], row["model_type"], width, int(row["rank"]))
                losses.setdefault(key, {}).setdefault(float(row["learning_rate"]), []).append(loss)
    cells = (_cell(key, by_rate) for key, by_rate in losses.items())
    return [cell for cell in cells if cell is not None]


def _cell(key: tuple[str, str, int, int], by_rate: dict[float, list[float]]) -> Cell | None:
    model, model_type, width, rank = key
    rates = sorted(by_rate)
    if len(rates) < 3:
        return None
    x = np.log(rates)
    y = np.array([np.mean(by_rate[rate]) for rate in rates])
    middle = int(np.clip(y.argmin(), 1, len(rates) - 2))
    near = slice(middle - 1, middle + 2)
    a, b, c = (float(value) for value in np.polyfit(x[near], y[near], 2))
    if a <= 0:
        return None
    vertex = float(np.clip(-b / (2 * a), x[0] - EDGE, x[-1] + EDGE))
    return Cell(
        model=model,
        model_type=model_type,
        hidden_size=width or None,
        rank=rank,
        coefficients=(a, b, c),
        vertex=vertex,
        best=float(y.min()),
    )


def fit(cells: Sequence[Cell]) -> dict[str, float]:
    """Weighted ridge regression of the vertices on the features."""
    rows = [features(cell.model_type, cell.hidden_size, cell.rank) for cell in cells]
    design = np.array([[row.get(name, 0.0) for name in NAMES] for row in rows])
    weights = np.array([cell.weight for cell in cells])
    vertices = np.array([cell.vertex for cell in cells])
    precision = np.array([PRECISION.get(name, 1.0) for name in NAMES])
    prior = np.array([TYPICAL.get(name, 0.0) for name in NAMES])
    left = design.T @ (weights[:, None] * design) + np.diag(precision)
    right = design.T @ (weights * vertices) + precision * prior
    return dict(zip(NAMES, np.linalg.solve(left, right).tolist(), strict=True))


def left_out(cells: Sequence[Cell]) -> dict[int, float]:
    """Rate of each cell (by index) by a fit that has not seen its model."""
    rates: dict[int, float] = {}
    for model in dict.fromkeys(cell.model for cell in cells):
        coefficients = fit([cell for cell in cells if cell.model != model])
        for index, cell in enumerate(cells):
            if cell.model == model:
                rates[index] = sweep_rate(cell.model_type, cell.hidden_size, cell.rank, coefficients)
    return rates


def constants(cells: Sequence[Cell]) -> dict[str, float]:
    """Standard deviations and the schedule's factor."""
    rates = left_out(cells)
    errors = np.array([math.log(rates[i]) - cell.vertex for i, cell in enumerate(cells)])
    coefficients = fit(cells)
    families = [value for name, value in coefficients.items() if name.startswith("family:")]
    ratios: list[float] = []
    for name in LAW_MODELS:
        cell = next(cell for cell in cells if cell.model.endswith("/" + name))
        assert cell.hidden_size is not None
        law = thinking_machines_law(cell.model_type, cell.hidden_size, lora=True)
        assert law is not None
        ratios.append(law / sweep_rate(cell.model_type, cell.hidden_size, LAW_RANK, coefficients))
    return {
        "LOG_SD": float(np.sqrt(np.mean(errors**2))),
        "FAMILY_SD": float(np.std(families)),
        "CONSTANT_OVER_LINEAR": float(np.exp(np.mean(np.log(ratios)))),
    }


def render(cells: Sequence[Cell]) -> str:
    """The module that the planner imports."""
    lines = [
        '"""Coefficients of the learning-rate estimate; made by `scripts/fit_learning_rate.py`, not by hand."""',
        "",
        "from __future__ import annotations",
        "",
        "COEFFICIENTS = {",
        *(f'    "{name}": {value:.6f},' for name, value in fit(cells).items()),
        "}",
        '"""log rate = their sum with `learning_rate.features`."""',
    ]
    notes = {
        "LOG_SD": "Error of the log rate, leave-one-model-out, against the vertices of the sweep.",
        "FAMILY_SD": "Spread of the families' offsets: what is not known of a family outside the sweep.",
        "CONSTANT_OVER_LINEAR": (
            f"The paper's law (constant rate) over this fit (linear decay) at rank {LAW_RANK}, "
            f"{len(LAW_MODELS)} models in both."
        ),
    }
    for name, value in constants(cells).items():
        lines += ["", f"{name} = {value:.4f}", f'"""{notes[name]}"""']
    models = len({cell.model for cell in cells})
    lines += [
        "",
        "FULL_RATIO_SD = 0.35",
        '"""Of the log of LoRA over FullFT: ratios between 5 and 20 were seen in long supervised runs."""',
        "",
        f'SOURCE = "fit on {len(cells)} (model, rank) cells of {models} models of Thinking Machines\' published sweep"',
        "",
    ]
    return "\n".join(lines)


def print_table(cells: Sequence[Cell]) -> None:
    """Loss given up by each estimate, percent of the best grid point."""
    rates = left_out(cells)
    index_of = {id(cell): index for index, cell in enumerate(cells)}

    def law(cell: Cell) -> float | None:
        if cell.hidden_size is None:
            return None
        return thinking_machines_law(cell.model_type, cell.hidden_size, lora=True)

    estimates: dict[str, Callable[[Cell], float | None]] = {
        "this fit, model left out": lambda cell: rates[index_of[id(cell)]],
        "Thinking Machines' law": law,
        "flat 3e-4": lambda _: 3e-4,
    }
    print(f"{'loss given up (%)':28} {'cells':>5} {'median':>8} {'p90':>8} {'worst':>8}")
    for name, estimate in estimates.items():
        regrets = [cell.regret(rate) for cell in cells if (rate := estimate(cell)) is not None]
        median, p90 = np.median(regrets), np.quantile(regrets, 0.9)
        print(f"{name:28} {len(regrets):5} {median:8.3f} {p90:8.3f} {max(regrets):8.3f}")
    print(f"\n{'model':44} {'rank':>4} {'left out':>9} {'vertex':>9} {'given up':>9}")
    for index, cell in enumerate(cells):
        rate = rates[index]
        model = cell.model.partition("/")[2]
        print(f"{model:44} {cell.rank:4} {rate:9.2e} {math.exp(cell.vertex):9.2e} {cell.regret(rate):8.3f} %")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="tinker_sft_sweep.csv")
    parser.add_argument("--check", action="store_true", help="compare with the committed coefficients")
    arguments = parser.parse_args()
    cells = read_cells(arguments.sweep)
    print_table(cells)
    text = render(cells)
    if arguments.check:
        return 0 if OUTPUT.read_text() == text else 1
    OUTPUT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
