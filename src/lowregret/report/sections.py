"""The parts of `report.html` as HTML text.

Guarantee: whatever comes from a model, a data set or a user is escaped; nothing refers to another file or address.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import cast

from lowregret.report.findings import SlotFinding, Verdict
from lowregret.report.numbers import count, learning_rate, memory, nats, seconds
from lowregret.specs import ResolvedPlan
from lowregret.store import Environment, RunDirectory, SampleRow


def header(run: RunDirectory, verdict: Verdict, environment: Environment) -> str:
    """Title, verdict and the run in one line."""
    plan = run.plan
    steps = [row.step for row in (run.read_metrics() if plan.spec.rl is None else run.read_policy())]
    state = "finished" if run.finished else f"not finished: step {max(steps, default=0):,} of {plan.steps:,}"
    summary = run.summary or {}
    facts = [
        state,
        f"{plan.steps:,} steps of {plan.spec.train.batch_size} {_unit(plan)} a slot",
        f"{plan.dtype} on {environment.device}",
        *([f"{count(summary['tokens'])} tokens in {seconds(summary['seconds'])}"] if "tokens" in summary else []),
        *([f"peak memory {memory(summary['peak_memory_bytes'])}"] if "peak_memory_bytes" in summary else []),
        environment.created[:10],
    ]
    mood = "good" if verdict.improved else "bad"
    return (
        f"<header><p class=eyebrow>lowregret {escape(plan.spec.task)} run</p>"
        f"<h1>{escape(plan.spec.model.source)} <span class=on>on</span> {escape(plan.spec.data.source)}</h1>"
        f'<p class="verdict {mood}">{escape(verdict.text)}</p>'
        f"<p class=facts>{' &middot; '.join(escape(fact) for fact in facts)}</p></header>"
    )


def findings_table(findings: Sequence[SlotFinding], verdict: Verdict) -> str:
    """One line a slot; the best one is marked."""
    head = (
        "slot",
        "method",
        "learning rate",
        "parameters",
        "test NLL before",
        "after",
        "bits/token after",
        "drop",
        "validation NLL",
    )
    rows: list[str] = []
    for found in findings:
        best = found.slot == verdict.best
        cells = (
            learning_rate(found.lr),
            count(found.num_parameters),
            nats(found.before),
            found.ended or nats(found.after),
            nats(found.bits),
            nats(found.drop),
            nats(found.validation),
        )
        mark = " <span class=tag>best</span>" if best else ""
        rows.append(
            f"<tr{' class=best' if best else ''}><th scope=row>{escape(found.slot)}{mark}</th>"
            f"<td class=method>{escape(found.method)}</td>"
            + "".join(f"<td class=number>{escape(cell)}</td>" for cell in cells)
            + "</tr>"
        )
    note = (
        "NLL in nats per completion token. The best slot is chosen on the validation split and reported on the test "
        "split. One run has no interval: differences between slots can be chance."
    )
    return section("Findings", f"{table(head, rows, numbers_from=2)}<p class=note>{note}</p>", anchor="findings")


def charts(*, has_rates: bool) -> str:
    """Empty places that the script fills."""
    rates = (
        "<figure><figcaption>Final test NLL against learning rate</figcaption><div id=rates class=chart></div></figure>"
    )
    body = (
        "<div class=controls><span id=splits class=buttons></span><span id=axis class=buttons></span></div>"
        "<figure><figcaption>Held-out NLL</figcaption><div id=held-out class=chart></div></figure>"
        "<figure><figcaption>Training loss, smoothed over the last fifth of the steps so far</figcaption>"
        f"<div id=training class=chart></div></figure>{rates if has_rates else ''}"
        "<noscript><p>The charts need JavaScript; figures/ holds them as pictures.</p></noscript>"
    )
    return section("Learning curves", body, anchor="curves")


def samples(rows: Sequence[SampleRow]) -> str:
    """Answers before and after training side by side, a card a prompt."""
    if not rows:
        return ""
    cards: list[str] = []
    for prompt, reference in dict.fromkeys((row.prompt, row.reference) for row in rows):
        answers = [row for row in rows if (row.prompt, row.reference) == (prompt, reference)]
        boxes = "".join(
            f'<div class="answer {row.when}"><h4>{escape(row.slot)} <span>{row.when} training</span></h4>'
            f"<pre>{escape(row.answer)}</pre></div>"
            for row in answers
        )
        cards.append(
            f"<article class=sample><div class=asked><div><h4>prompt</h4><pre>{escape(prompt)}</pre></div>"
            f"<div><h4>reference answer</h4><pre>{escape(reference)}</pre></div></div>"
            f"<div class=answers>{boxes}</div></article>"
        )
    return section("Sample answers", "".join(cards), anchor="samples")


def decisions(plan: ResolvedPlan) -> str:
    """What the planner chose, why, and what it warned of."""
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in plan.warnings)
    rows = [
        f"<tr><th scope=row><code>{escape(d.name)}</code></th><td class=number>{escape(str(d.value))}</td>"
        f"<td>{escape(d.reason)}</td><td>{escape(d.source)}</td></tr>"
        for d in plan.derived
    ]
    body = f"<ul class=warnings>{warnings}</ul>" if warnings else ""
    body += table(("decision", "value", "reason", "source"), rows) if rows else "<p>Everything was given.</p>"
    if plan.memory_bytes:
        parts = {name: memory(size) for name, size in plan.memory_bytes.items()}
        body += f"<h3>Predicted peak memory</h3>{_pairs(parts)}"
    return section("Plan: decisions and reasons", body, anchor="plan")


def data(run: RunDirectory) -> str:
    """Which data, and what became of its examples."""
    facts = run.plan.facts
    names = ("training examples", "training tokens", "of these with loss", "longest example")
    if run.spec.rl is not None:
        names = ("training problems", "tokens of their prompts", "drawn an epoch, at most", "longest with completion")
    numbers = (facts.num_examples, facts.num_tokens, facts.num_completion_tokens, facts.longest)
    about = {
        "source": run.spec.data.source,
        **{name: count(number) for name, number in zip(names, numbers, strict=True)},
        "counts": "approximate" if facts.approximate else "exact",
    }
    about[names[-1]] += " tokens"
    report = run.data_report
    body = _pairs(about) + (f"<h3>What became of the examples</h3>{_pairs(flatten(report))}" if report else "")
    return section("Data", body, anchor="data")


def provenance(environment: Environment) -> str:
    """Versions, machine and source."""
    about = {
        "created": environment.created,
        "python": environment.python,
        "platform": environment.platform,
        "processor": f"{environment.cpu}, {environment.num_cpus} CPUs",
        "device": environment.device,
        "threads": str(environment.threads),
        **environment.packages,
        "source commit": environment.git_commit or "not in a repository",
    }
    body = _pairs(about)
    if environment.git_diff:
        body += f"<details><summary>Changes to that commit</summary><pre>{escape(environment.git_diff)}</pre></details>"
    return section("Environment", body, anchor="environment")


def commands(run: RunDirectory, verdict: Verdict, spec_toml: str) -> str:
    """How to get the run again, go on with it, and use what it trained."""
    folder = shlex.quote(str(run.path))
    command = f"lowregret {run.spec.task}"
    lines = [("Reproduce it", f"{command} {shlex.quote(str(run.path / 'spec.toml'))} --out NEW_FOLDER")]
    if not run.finished:
        lines.append(("Go on with it", f"{command} --resume {folder}"))
    if verdict.best is not None:
        lines.append(
            (
                "Merge the best slot",
                f"lowregret export {folder} --slot {shlex.quote(verdict.best)} --merge --out MERGED",
            )
        )
    shown = "".join(f"<h3>{title}</h3><pre class=command>{escape(line)}</pre>" for title, line in lines)
    body = f"{shown}<details><summary>spec.toml</summary><pre>{escape(spec_toml)}</pre></details>"
    return section("Reproduce, resume, use", body, anchor="commands")


def flatten(record: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """A nested record as dotted names and text.

    >>> flatten({"splits": {"train": 1800, "test": 144}})
    {'splits.train': '1,800', 'splits.test': '144'}
    """
    flat: dict[str, str] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= flatten(cast("Mapping[str, object]", value), f"{prefix}{name}.")
        else:
            exact = isinstance(value, int) and not isinstance(value, bool)
            flat[f"{prefix}{name}"] = f"{value:,}" if exact else str(value)
    return flat


def _unit(plan: ResolvedPlan) -> str:
    rl = plan.spec.rl
    return "sequences" if rl is None else f"prompts x {rl.group} completions"


def section(title: str, body: str, *, anchor: str) -> str:
    """A titled part of the page."""
    return f"<section id={anchor}><h2>{title}</h2>{body}</section>"


def table(head: Iterable[str], rows: Iterable[str], *, numbers_from: int = 99) -> str:
    """Rows of markup under a head of text."""
    cells = "".join(
        f"<th scope=col{' class=number' if index >= numbers_from else ''}>{name}</th>"
        for index, name in enumerate(head)
    )
    return f"<div class=scroll><table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _pairs(pairs: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs.items())
    return f"<dl>{rows}</dl>"
