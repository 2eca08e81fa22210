"""The walk of a benchmark that trains beside TRL: race of number formats, turns, checks, result."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from beside.envelope import write_result
from beside.formats import best
from beside.sft import Sft, answer, medians, rows, run_child
from beside.turns import need, parse, parser_of

SHORT = {"batch_size": 4, "steps": 6, "rounds": 1, "checked": 1}


def run(script: str, doc: str | None, *, method: str, question: str, answers: Mapping[str, tuple[str, str]]) -> None:
    """Measure and write the result of one script.

    Args:
        script: its file; contenders are this script with `--child`.
        method: `lora` or `full`.
        answers: from a key of the summary to the quantity that it compares, and its unit.
    """
    started = time.perf_counter()
    parser = parser_of(doc, data="reasoning-gym:number_sorting", short=SHORT)
    parser.add_argument("--steps", type=int, default=6, help="steps of a turn; the first is warm-up (6)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each contender (2)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences a step (8)")
    parser.add_argument("--checked", type=int, default=4, help="sequences whose gradients are compared (4)")
    arguments = parse(parser, SHORT)
    if arguments.child:
        run_child(arguments.child, json.loads(arguments.job.read_text()))
        return
    need((arguments.steps - 1) * arguments.rounds, arguments, "--steps or --rounds")
    fastest, race = best(arguments, method)
    ours, peer = f"ours-{method}-{fastest['ours']}", f"trl-{method}-{fastest['trl']}"
    name = Path(script).stem
    with tempfile.TemporaryDirectory() as scratch:
        sft = Sft(script, arguments, method, Path(scratch))
        turns = sft.turns(name, [ours, peer])
        checks = sft.checks(turns, ours, peer)
    found = medians(turns)
    result = write_result(
        name,
        arguments=arguments,
        question=question,
        rows=rows(turns),
        medians=found,
        answers={key: answer(found, ours, peer, quantity, unit) for key, (quantity, unit) in answers.items()},
        checks=checks | {"race_of_formats": race},
        raw=turns,
        started=started,
    )
    print(json.dumps({key: result[key] for key in ("answers", "checks")}, indent=1))
