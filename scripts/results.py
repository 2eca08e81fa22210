"""Writes docs/results.md from finished studies: findings, best rates, tuned losses, figures; nothing is typed by hand.

    python scripts/results.py studies/laptop studies/ratio studies/certify-smollm2   # without any: the page anew

Of each study `docs/studies/NAME/` gets findings.json, the spec, the PNG figures and its section of the page; the page
is all sections there, so that a study can be added when the others' folders are gone. What they mean is said in
papers/NAME.md, which is included where it exists; it holds no number that the tables do not.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from fidelity_tables import drops_table, forward_table, vertices_table

from lowregret.specs import QuestionSpec
from lowregret.store.run import RunDirectory
from lowregret.store.study import STUDY, StudyDirectory
from lowregret.studies.accuracy import num_collapsed, tuned_accuracy
from lowregret.studies.arm_builder import REINFORCED
from lowregret.studies.best_rate import log_best_rates, tuned_test_losses
from lowregret.studies.outcome import Outcome
from lowregret.studies.reading import outcomes_of
from lowregret.studies.students_t import Floats, t_interval
from lowregret.studies.surface import Refused, Surface, surfaces

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SECTION = "section.md"
FINDINGS, FIGURES = "### Findings", "### Figures"


def main() -> None:
    """Write the page and copy what it shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", type=Path, help="finished study directories")
    studies = [StudyDirectory.open(path) for path in parser.parse_args().studies]
    for study in studies:
        _copy(study)
        (DOCS / "studies" / study.spec.name / SECTION).write_text("\n".join(_section(study)) + "\n")
    parts = ["# Results\n\nMade by `scripts/results.py` from the studies' own folders.\n"]
    for file in sorted((DOCS / "studies").glob(f"*/{SECTION}")):
        parts.append(file.read_text())
        _fill(DOCS / "fidelity.md", file.parent.name, parts[-1])
    (DOCS / "results.md").write_text("\n".join(parts))


def _copy(study: StudyDirectory) -> None:
    folder = DOCS / "studies" / study.spec.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in (study.path / "findings.json", *sorted(study.figures.glob("*.png"))):
        shutil.copy(file, folder / file.name)
    (folder / STUDY).write_text(_without_places((study.path / STUDY).read_text()))


def _without_places(text: str) -> str:
    """Absolute paths as their last two parts: where a file lay on one machine says nothing to a reader."""
    return re.sub(r"(?<=[\s\"'])/[^\s\"']*/([^/\s\"']+/[^/\s\"']+)", r"\1", text)


def _section(study: StudyDirectory) -> list[str]:
    spec, environment = study.spec, study.environment
    findings = study.read_findings()
    verdicts = Counter(finding["verdict"] for finding in findings)
    cells = {cell.cell for cell in study.plan.cells if study.has_record(cell.cell)}  # a study may have been stopped
    minutes = sum(study.read_record(cell).seconds for cell in cells) / 60
    commit = (environment.get("git_commit") or "")[:10]
    threads = environment["threads"]
    counted = ", ".join(f"{number} {verdict}" for verdict, number in sorted(verdicts.items()))
    lines = [
        f"## {spec.name}: {spec.model.source}",
        "",
        f"`lowregret {_command(environment)}`, {environment['created'][:10]}, commit {commit}; {environment['cpu']}, "
        f"{spec.workers} worker{'s' if spec.workers > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}; "
        f"{len(cells)} cells, {minutes:.0f} minutes of training summed over the workers, evaluation left out. "
        f"Of {len(findings)} claims {counted}.",
    ]
    said = ROOT / "papers" / f"{spec.name}.md"
    if said.is_file():
        lines += ["", said.read_text().strip()]
    lines += ["", FINDINGS, "", *_findings(findings), "", "### Best learning rates and tuned losses", ""]
    lines += ["LR* with its 95 % interval over seeds; test loss at the rate that validation chose, mean over seeds."]
    for index, question in enumerate(spec.questions):
        lines += _rates(index, question, outcomes_of(study, index))
        if question.protocol in REINFORCED:
            lines += _by_rate(study, index)
        if question.protocol == "fidelity":
            lines += _fidelity(outcomes_of(study, index))
    figures = sorted((DOCS / "studies" / spec.name).glob("*.png"))
    lines += ["", FIGURES, ""]
    lines += [f"![{figure.stem}](studies/{spec.name}/{figure.name})" for figure in figures]
    return lines


def _fill(page: Path, name: str, section: str) -> None:
    """Put a section's findings and tables between the lines of a page that are marked with its name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = page.read_text()
    if begin not in text:
        return
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    shown = section.split(FINDINGS)[1].split(FIGURES)[0].strip()
    page.write_text(f"{before}{begin}\n\n{shown}\n\n{end}{after}")


def _fidelity(outcomes: tuple[Outcome, ...]) -> list[str]:
    """What each arithmetic lets act of the same masters, and what runs that train in it end with."""
    forward = "Forward fidelity (share of the fp32 loss drop that acts), mean over seeds of estimate and interval:"
    ended = "Held-out nats of runs that train in faithful and in usual arithmetic, mean over seeds:"
    lines = ["", forward, *forward_table(outcomes), "", ended, *drops_table(outcomes)]
    if vertices := vertices_table(outcomes):
        lines += [
            "",
            "Best rate of each seed, by a parabola through three rates (no verdict: the rules fit five):",
            *vertices,
        ]
    return lines


def _command(environment: dict[str, Any]) -> str:
    words = environment["command"]
    return _without_places(" ".join(words[1:] if words else []))


def _findings(findings: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| claim | question | verdict | estimate | interval | margin | seeds | why |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in findings:
        estimate = "-" if one["estimate"] is None else f"{one['estimate']:.4g}"
        why = one["reason"] + (f"; to settle it: {one['settles']}" if one["settles"] else "")
        quantity = f" ({one['quantity']})" if one["quantity"] else ""
        band = f"{_pair(one['interval'])} | {_pair(one['margin'])}"
        asked = f"{one['claim']} | {one['question']}{quantity}"
        lines.append(f"| {asked} | **{one['verdict']}** | {estimate} | {band} | {one['seeds']} | {why} |")
    details = [f"- {one['claim']}: {_details(one)}" for one in findings if one["details"]]
    return [*lines, "", "Further numbers of each finding:", "", *details]


def _details(finding: dict[str, Any]) -> str:
    return "; ".join(f"{name} {value:.4g}" for name, value in finding["details"].items())


def _pair(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float | int) else f"{value[0]:.4g} to {value[1]:.4g}"


def _rates(index: int, question: QuestionSpec, outcomes: tuple[Outcome, ...]) -> list[str]:
    if question.protocol in REINFORCED:
        return _accuracies(index, question, outcomes)
    found = {arm: surface for arm, surface in surfaces(outcomes).items() if surface.num_rates > 1}
    if not found or question.protocol == "capacity":
        return []
    lines = ["", f"Question {index + 1}, {question.protocol}:", ""]
    lines += [
        "| arm | width | batch | steps | rates | seeds | LR* | interval | test nats |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, surface in found.items():
        best, interval = _best(surface)
        place = f"{arm.width} | {arm.batch_size} | {arm.steps} | {surface.num_rates} | {len(surface.seeds)}"
        lines.append(f"| {arm.label} | {place} | {best} | {interval} | {_tuned(surface)} |")
    return lines


def _accuracies(index: int, question: QuestionSpec, outcomes: tuple[Outcome, ...]) -> list[str]:
    """Held-out accuracy at the rate that validation chose, mean (lowest to highest seed)."""
    lines = ["", f"Question {index + 1}, {question.protocol}; accuracy at the rate that validation chose:", ""]
    lines += [
        "| arm | parameters | rates | seeds | rate | at the start | at the end | best over steps | cells collapsed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, surface in surfaces(outcomes).items():
        own = [outcome for outcome in outcomes if outcome.arm == arm]
        lost = f"{num_collapsed(own)} of {len(own)}"
        try:
            tuned = tuned_accuracy(surface)
            values = f"{tuned.rate:.3g} | {_seeds(tuned.start)} | {_seeds(tuned.final)} | {_seeds(tuned.best)}"
        except Refused as refused:
            values = f"- | - | {refused.reason} | -"
        lines.append(
            f"| {arm.label} | {arm.params:,} | {surface.num_rates} | {len(surface.seeds)} | {values} | {lost} |"
        )
    return lines


def _by_rate(study: StudyDirectory, index: int) -> list[str]:
    """Test accuracy of every arm at every rate, means over seeds, of drawn and of greedy answers."""
    planned = {cell.cell: cell for cell in study.plan.cells if cell.question == index}
    found: dict[tuple[str, float], list[tuple[float, float, float]]] = defaultdict(list)
    before: list[float] = []
    for bank in study.plan.banks:
        if not planned.keys() & set(bank.cells):
            continue
        rows = [row for row in RunDirectory.open(study.bank_folder(bank.bank)).read_accuracy() if row.split == "test"]
        last = max(row.step for row in rows)
        before += [row.accuracy for row in rows if (row.how, row.step, row.slot) == ("greedy", 0, bank.cells[0])]
        for cell in bank.cells:
            drawn = [row.accuracy for row in rows if (row.slot, row.how) == (cell, "sampled")]
            greedy = [r.accuracy for r in rows if (r.slot, r.how, r.step) == (cell, "greedy", last)]
            if drawn and greedy:
                key = (planned[cell].arm.label, planned[cell].lr)
                found[key].append((drawn[-1], max(drawn), greedy[0]))
    lines = ["", f"By rate, means over seeds; greedy answers were right to {fmean(before):.3f} before training:", ""]
    lines += [
        "| arm | rate | drawn, at the end | drawn, best over steps | greedy, at the end |",
        "|---|---|---|---|---|",
    ]
    for (label, rate), values in sorted(found.items()):
        end, best, greedy = (fmean(column) for column in zip(*values, strict=True))
        lines.append(f"| {label} | {rate:.3g} | {end:.3f} | {best:.3f} | {greedy:.3f} |")
    return lines


def _seeds(values: Floats) -> str:
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"


def _best(surface: Surface) -> tuple[str, str]:
    try:
        logs = log_best_rates(surface)
    except Refused as refused:
        return "-", refused.reason
    low, high = t_interval(logs) if len(logs) > 1 else (math.nan, math.nan)
    return f"{math.exp(float(logs.mean())):.3g}", f"{math.exp(low):.3g} to {math.exp(high):.3g}"


def _tuned(surface: Surface) -> str:
    try:
        return f"{float(tuned_test_losses(surface).mean()):.4f}"
    except Refused:
        return "-"


if __name__ == "__main__":
    main()
