"""What a step of LoRA costs, measured in steps of full fine-tuning: same engine, same batches, same number format.

    python benchmarks/lora_full_step.py --data gsm8k/train.jsonl

LoRA leaves out the gradient of the frozen weight, a third of the arithmetic of its matrix products; the adapters, the
attention and everything elementwise stay. `theory` is the ratio of the multiply-adds that the planner counts
(`planner/flops.py`) for these very batches, the unembedding at loss positions only.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from beside.envelope import Answer, write_result
from beside.formats import best
from beside.ours import RANK
from beside.sft import Sft, medians, rows, run_child, spoken
from beside.turns import need, parse, parser_of

SHORT = {"batch_size": 2, "steps": 4, "rounds": 2}


def main() -> None:
    """Let LoRA and full fine-tuning take turns."""
    started = time.perf_counter()
    parser = parser_of(__doc__, data="reasoning-gym:number_sorting", short=SHORT)
    parser.add_argument("--steps", type=int, default=6, help="steps of a turn; the first is warm-up (6)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (3)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences a step (8)")
    parser.set_defaults(checked=0)
    arguments = parse(parser, SHORT)
    if arguments.child:
        run_child(arguments.child, json.loads(arguments.job.read_text()))
        return
    need((arguments.steps - 1) * arguments.rounds, arguments, "--steps or --rounds")
    fastest, race = best(arguments, "lora")
    lora, full = (f"ours-{method}-{fastest['ours']}" for method in ("lora", "full"))
    with tempfile.TemporaryDirectory() as scratch:
        sft = Sft(__file__, arguments, "lora", Path(scratch))
        turns = sft.turns("lora_full_step", [lora, full])
    found = medians(turns)
    ours, peer = found[lora]["seconds_a_step"], found[full]["seconds_a_step"]
    checks = {
        "theory": theory(sft.job),
        "first_loss_difference": abs(turns[lora][0]["losses"][0] - turns[full][0]["losses"][0]),
        "race_of_formats": race,
    }
    result = write_result(
        "lora_full_step",
        arguments=arguments,
        question="How much of a step of full fine-tuning does a step of LoRA take?",
        rows=rows(turns),
        medians=found,
        answers={
            "lora_full_step": Answer(
                ours=ours,
                peer=peer,
                unit="s a step",
                ours_was=f"LoRA: {spoken(lora)}",
                peer_was=f"FullFT: {spoken(full)}",
            )
        },
        checks=checks,
        raw=turns,
        started=started,
    )
    print(json.dumps({key: result[key] for key in ("answers", "checks")}, indent=1))


def theory(job: dict[str, Any]) -> float:
    """Counted multiply-adds of LoRA over those of full fine-tuning on the job's batches."""
    from lowregret.planner.flops import flops
    from lowregret.planner.shapes import read_shape
    from lowregret.planner.targets import select

    shape = read_shape(Path(job["model"]))
    lengths = [len(row["input_ids"]) for row in job["rows"]]
    completion = sum(sum(row["completion_mask"]) for row in job["rows"])
    mean = sum(n * n for n in lengths) / sum(lengths)  # of a token's document: attention is over documents
    lora = flops(shape, method="lora", adapted=select(shape, ("all",), unembed=False), rank=RANK, mean_length=mean)
    full = flops(shape, method="full", mean_length=mean)
    return lora.of_run(sum(lengths), completion) / full.of_run(sum(lengths), completion)


if __name__ == "__main__":
    main()
