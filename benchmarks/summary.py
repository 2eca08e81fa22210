"""The goals beside what was measured: `results/summary.json`, the page `RESULTS.md` and its figures, from JSON alone.

    python benchmarks/summary.py            # write them
    python benchmarks/summary.py --check    # say whether the committed ones are what the committed results give

Nothing is measured here and no number is typed by hand but the goals, which were set before the measurements. A result
without a complete envelope, or of a smoke test, is named and left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beside.envelope import FIELDS, RESULTS
from beside.figures import draw, figures_of

SUMMARY = "summary.json"
Results = Mapping[str, dict[str, Any]]
"""Results by the name of their script."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One row of the table of goals.

    >>> Goal(key="sft_lora_cpu", question="", bound=4.0).met(4.1)
    True
    """

    key: str
    question: str
    bound: float
    at_least: bool = True
    """Else at most."""

    def met(self, ratio: float) -> bool:
        return ratio >= self.bound if self.at_least else ratio <= self.bound

    @property
    def words(self) -> str:
        return f"at {'least' if self.at_least else 'most'} {self.bound:g}"


GOALS = (
    Goal(key="sft_lora_cpu", question="SFT, rank 16, real tokens/s, over the best of TRL + PEFT", bound=4.0),
    Goal(key="sft_memory_cpu", question="peak memory of the same", bound=0.4, at_least=False),
    Goal(key="full_cpu", question="full fine-tuning, real tokens/s, over the best of TRL", bound=3.5),
    Goal(key="lora_full_step", question="time of a LoRA step over one of full fine-tuning", bound=0.75, at_least=False),
    Goal(key="gemm_share", question="share of a LoRA step that is its matrix products at full speed", bound=0.5),
    Goal(key="bank8_step", question="8 adapters in one pass, speed over one after another", bound=1.4),
    Goal(key="bank8_memory", question="peak memory of 8 adapters over that of one", bound=1.6, at_least=False),
    Goal(key="study24", question="24 cells, pace of one study over that of 24 runs of TRL", bound=6.0),
    Goal(key="sample16", question="sampling, 16 rows, over `generate` + PEFT", bound=4.0),
    Goal(key="sample64", question="sampling, 64 rows, over `generate` + PEFT", bound=6.0),
    Goal(key="bank8_sample", question="8 adapters sampled in one batch of 16, over one after another", bound=4.0),
    Goal(key="grpo_step", question="GRPO, tokens of completions/s, over TRL's GRPOTrainer", bound=4.0),
    Goal(key="gpu_sft", question="GPU: SFT on a 1B-shaped Llama, over the best peer", bound=1.5),
    Goal(key="gpu_bank8", question="GPU: 8 adapters in one pass, over one after another", bound=3.0),
)
CHECKS = {
    "first_loss_difference": "first loss differs by",
    "largest_fp32_loss_difference": "largest difference of a loss in fp32",
    "largest_loss_difference": "largest difference of a slot's loss to its run alone",
    "gradient_cosine_timed_to_peer_fp32": "cosine of the timed gradients to the peer's in fp32",
    "gradient_cosine_bf16_to_fp32": "cosine of ours in bf16 to ours in fp32",
    "gradient_cosine_bf16_to_peer_fp32": "cosine of ours in bf16 to the peer's in fp32",
    "share_of_speed": "share of the card's speed in a step of one adapter",
    "theory": "counted ratio of multiply-adds",
    "share_of_tokens": "share of equal greedy tokens in fp32",
}
"""Checks that the page shows, said."""


def main() -> None:
    """Write the summary, the page and the figures; or compare the first two with what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON results")
    parser.add_argument("--page", type=Path, default=None, help="where the page goes (RESULTS.md beside the folder)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where something would change")
    arguments = parser.parse_args()
    page = arguments.page or arguments.results.parent / "RESULTS.md"
    results, left_out = read(arguments.results)
    for name, why in left_out.items():
        print(f"{name}.json is left out: {why}", file=sys.stderr)
    texts = {
        arguments.results / SUMMARY: json.dumps(summary_of(results), indent=1) + "\n",
        page: page_of(results, left_out),
    }
    if arguments.check:
        stale = [file.name for file, text in texts.items() if not file.is_file() or file.read_text() != text]
        stale += [name for name in figures_of(results) if not (page.parent / "figures" / name).is_file()]
        if stale:
            raise SystemExit(f"not what the results give: {', '.join(stale)}; run python benchmarks/summary.py")
        return
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
    draw(results, page.parent / "figures")
    print("\n".join(goal_lines(summary_of(results))))


def read(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Complete results by name, and why others are left out."""
    results: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for file in sorted(folder.glob("*.json")):
        if file.name == SUMMARY:
            continue
        result = json.loads(file.read_text(encoding="utf-8"))
        missing = [field for field in FIELDS if field not in result]
        if "question" in missing:
            left_out[file.stem] = "it was measured before results had a common envelope"
        elif missing:
            left_out[file.stem] = f"it has no {', '.join(missing)}"
        elif result.get("smoke"):
            left_out[file.stem] = "it is of a smoke test"
        else:
            results[file.stem] = result
    return results, left_out


def summary_of(results: Results) -> dict[str, dict[str, Any]]:
    """Every goal that was measured."""
    found: dict[str, dict[str, Any]] = {}
    for goal in GOALS:
        for name, result in results.items():
            answer = result["answers"].get(goal.key)
            if answer is not None:
                assert goal.key not in found, f"{goal.key} is answered twice"
                found[goal.key] = {
                    **answer,
                    "goal": goal.words,
                    "met": goal.met(answer["ratio"]),
                    "device": device_words(result["device"]),
                    "commit": result["commit"]["id"],
                    "uncommitted_changes": result["commit"]["dirty"],
                    "date": result["date"],
                    "set": result["setting"]["set"],
                    "file": f"{name}.json",
                }
    return found


def device_words(device: Mapping[str, Any]) -> str:
    """The machine in a line."""
    features = ", ".join(device["vector_features"]) or "no vector features known"
    bf16 = "bf16 in hardware" if device["bf16_instructions"] else "no bf16 instructions"
    words = f"{device['processor']}, {device['threads']} threads, {features}, {bf16}, {device['memory_gib']} GiB"
    return f"{device['accelerator']}; {words}" if device.get("accelerator") else words


def page_of(results: Results, left_out: Mapping[str, str]) -> str:
    """The page as text."""
    summary = summary_of(results)
    reached = sum(row["met"] for row in summary.values())
    lines = [
        "# Results",
        "",
        "Drawn by `benchmarks/summary.py` from the JSON under `benchmarks/results/`; no number is typed by hand. Ours",
        "and the peer took turns in one run, each in the number format in which it is fastest on that machine. Figures",
        "are medians; how many measurements each has stands in the tables below.",
        "",
        f"Of {len(GOALS)} goals {len(summary)} were measured and {reached} reached.",
        "",
        *goal_lines(summary),
        "",
        *machine_lines(summary),
        "",
        "## Who stood against whom",
        "",
        "| question | ours | peer |",
        "|---|---|---|",
    ]
    lines += [f"| {goal.key} | {row['ours_was']} | {row['peer_was']} |" for goal, row in measured(summary)]
    lines += ["", "## Correctness beside speed", "", "| result | check | value |", "|---|---|---|"]
    for name, result in results.items():
        lines += [f"| {name} | {words} | {number(value)} |" for words, value in checks_of(result)]
    if figures := figures_of(results):
        lines += ["", "## Figures", ""]
        lines += [f"![{title}](figures/{name})" for name, title in figures.items()]
    for name, result in results.items():
        lines += ["", *section(name, result)]
    if left_out:
        lines += ["", "## Left out", "", *(f"- `{name}.json`: {why}." for name, why in left_out.items())]
    return "\n".join(lines) + "\n"


def measured(summary: Mapping[str, dict[str, Any]]) -> list[tuple[Goal, dict[str, Any]]]:
    """Goals with a row."""
    return [(goal, summary[goal.key]) for goal in GOALS if goal.key in summary]


def goal_lines(summary: Mapping[str, dict[str, Any]]) -> list[str]:
    """The table of goals."""
    lines = [
        "| goal | question | ours | peer | ratio | wanted | reached | machine | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    machines = machines_of(summary)
    for goal in GOALS:
        row = summary.get(goal.key)
        if row is None:
            lines.append(f"| {goal.key} | {goal.question} | | | | {goal.words} | not measured | | |")
            continue
        machine = machines[row["device"]]
        commit = (row["commit"] or "unknown")[:10] + (" and changes" if row["uncommitted_changes"] else "")
        reached = "yes" if row["met"] else "**not reached**"
        lines.append(
            f"| {goal.key} | {goal.question} | {number(row['ours'])} {row['unit']} | {number(row['peer'])} "
            f"{row['unit']} | {number(row['ratio'])} | {goal.words} | {reached} | {machine} | {commit} |"
        )
    return lines


def machines_of(summary: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """A letter for every machine."""
    devices = dict.fromkeys(row["device"] for row in summary.values())
    return {device: chr(ord("A") + index) for index, device in enumerate(devices)}


def machine_lines(summary: Mapping[str, dict[str, Any]]) -> list[str]:
    """What the letters stand for."""
    return [f"- {letter}: {device}" for device, letter in machines_of(summary).items()]


def checks_of(result: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What was checked, said; those of a nested check too."""
    flat = dict(result["checks"])
    for value in result["checks"].values():
        flat |= value if isinstance(value, dict) else {}
    return [(words, flat[key]) for key, words in CHECKS.items() if key in flat]


def section(name: str, result: Mapping[str, Any]) -> list[str]:
    """One result: its question, settings, and every contender's medians."""
    settings = ", ".join(f"{key} {value}" for key, value in result["setting"].items())
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    lines = [
        f"## {name}",
        "",
        f"{result['question']} `{result['script']}`, {result['date'][:10]}, {result['seconds'] / 60:.0f} minutes.",
        f"Settings: {settings}. {device_words(result['device'])}. {versions}.",
        "",
    ]
    about = {row["contender"]: row for row in result["rows"]}
    quantities = list(dict.fromkeys(quantity for own in result["medians"].values() for quantity in own))
    lines += [f"| contender | format | measurements | {' | '.join(q.replace('_', ' ') for q in quantities)} |"]
    lines += ["|---" * (3 + len(quantities)) + "|"]
    for contender, own in result["medians"].items():
        row = about.get(contender, {})
        values = " | ".join(number(own[quantity]) if quantity in own else "" for quantity in quantities)
        lines.append(f"| {contender} | {row.get('format', '')} | {row.get('measurements', '')} | {values} |")
    return lines


def number(value: float) -> str:
    """Three digits that a reader can take in."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        # 0.9991 and 1.0000 are different findings
        return f"{value:.4f}" if 0.99 <= value < 1 else f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.1e}"


if __name__ == "__main__":
    main()
