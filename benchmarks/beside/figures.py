"""The figures of the page: who is faster by how much, and the curves of cost against size. Reads results alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Results = Mapping[str, dict[str, Any]]
OURS, PEER, OTHER = "#1f6feb", "#9a9a9a", "#d9d9d9"
BARS: dict[str, tuple[str, str, str]] = {
    "sft_vs_trl": ("tokens_per_second", "real tokens/s", "SFT with an adapter of rank 16"),
    "full_vs_trl": ("tokens_per_second", "real tokens/s", "full fine-tuning"),
    "sampling": ("tokens_per_second", "tokens/s", "sampling"),
    "grpo_vs_trl": ("tokens_per_second", "tokens of completions/s", "a GRPO step"),
    "study_vs_trl": ("seconds", "s (the peer's from a few of its runs)", "a study of 24 cells"),
    "bank": ("tokens_per_second", "real tokens/s", "eight adapters"),
}
"""Quantity, axis and title of a result's bars."""
CURVES = {"width": "width", "length": "tokens of a document", "rank": "rank", "slots": "adapters in one pass"}


def figures_of(results: Results) -> dict[str, str]:
    """Names of the figures that these results give, with titles."""
    found = {f"{name}.png": title for name, (_, _, title) in BARS.items() if name in results}
    if "scaling" in results:
        found["scaling.png"] = "Cost against size"
    return found


def draw(results: Results, folder: Path) -> None:
    """Write the figures, and remove those of results that are gone."""
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = figures_of(results)
    for file in folder.glob("*.png"):
        if file.name not in wanted:
            file.unlink()
    for name, (quantity, axis, title) in BARS.items():
        if name in results:
            _save(_bars(results[name], quantity, axis, title), folder / f"{name}.png")
    if "scaling" in results:
        _save(_curves(results["scaling"]), folder / "scaling.png")


def _save(figure: Any, file: Path) -> None:
    # Without the version of the library, the same results give the same file.
    figure.savefig(file, dpi=120, metadata={"Software": None})


def _bars(result: Mapping[str, Any], quantity: str, axis: str, title: str) -> Any:
    from matplotlib.figure import Figure

    medians = {name: own[quantity] for name, own in result["medians"].items() if quantity in own}
    figure = Figure(figsize=(7, 0.9 + 0.42 * len(medians)), layout="constrained")
    axes = figure.add_subplot()
    names = list(medians)[::-1]
    colours = [_colour(name) for name in names]
    bars = axes.barh(names, [medians[name] for name in names], color=colours)
    axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axes.margins(x=0.12)
    axes.set(xlabel=axis, title=title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _colour(name: str) -> str:
    last = name.rpartition(": ")[2]
    if last.startswith(("ours", "study", "together")):
        return OURS
    return OTHER if last.startswith("merged") else PEER


def _curves(result: Mapping[str, Any]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    curves = result["raw"]
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    figure.suptitle("Cost against size: a LoRA step on random Llama-shaped models")
    for index, (name, label) in enumerate(CURVES.items()):
        axes = figure.add_subplot(2, 2, index + 1)
        xs = [point["x"] for point in curves[name]]
        speeds = [point["medians"]["tokens_per_second"] for point in curves[name]]
        axes.plot(xs, speeds, "o-", color=OURS)
        axes.set(xlabel=label, ylabel="tokens/s", ylim=(0, 1.15 * max(speeds)))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xticks(xs)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.spines[["top", "right"]].set_visible(False)
        if name == "slots":
            for point in curves[name]:
                gain = point["medians"]["in_turn_over_one_pass"]
                place = (point["x"], point["medians"]["tokens_per_second"])
                axes.annotate(f"{gain:.2f}x", place, textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    return figure
