"""Eight adapters with one sequence each: in one pass, and one after another on the same engine.

    python benchmarks/bank.py --data gsm8k/train.jsonl

`in-turn` is eight runs of one adapter each, all their steps, one run after another on one loaded base; its seconds a
step are summed over the runs. `together` is one bank of eight, each adapter at its own sequence of the step. Losses of
the two are compared slot by slot. For memory, `one` is a single adapter that is given as many tokens as the eight
together, at the same token budget per micro-batch. Each turn is a process of its own; arms take turns; medians over
steps after the first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from beside.envelope import Answer, write_result
from beside.formats import best
from beside.ours import bank_on, examples_of, optimizer_of, tokens_of, training_job
from beside.sft import speeds
from beside.turns import give, in_process_of_its_own, median, need, parse, parser_of, peak_mib, take_turns

SHORT = {"steps": 6, "rounds": 1}
ARMS = ("together", "in-turn", "one")
LR = 3e-4


def main() -> None:
    """Let the arms take turns and sum up."""
    started = time.perf_counter()
    parser = parser_of(__doc__, data="reasoning-gym:number_sorting", short=SHORT)
    parser.add_argument("--slots", type=int, default=8, help="adapters (8)")
    parser.add_argument("--rank", type=int, default=16, help="of each (16)")
    parser.add_argument("--budget", type=int, default=2048, help="tokens per micro-batch, the same for all arms (2048)")
    parser.add_argument("--steps", type=int, default=6, help="steps of a turn; the first is warm-up (6)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each arm (3)")
    arguments = parse(parser, SHORT)
    if arguments.child:
        give(run_arm(arguments.child, json.loads(arguments.job.read_text())))
        return
    need((arguments.steps - 1) * arguments.rounds, arguments, "--steps or --rounds")
    fastest, race = best(arguments, "lora")
    with tempfile.TemporaryDirectory() as scratch:
        job_file = Path(scratch) / "job.json"
        own = argparse.Namespace(**vars(arguments) | {"batch_size": arguments.slots})
        own_settings = {name: getattr(arguments, name) for name in ("slots", "rank", "budget")}
        job_file.write_text(
            json.dumps(training_job(own, "lora", Path(scratch)) | own_settings | {"format": fastest["ours"]})
        )

        def act(arm: str) -> dict[str, Any]:
            command = [__file__, "--child", arm, "--job", str(job_file)]
            return in_process_of_its_own(command, arm, threads=arguments.threads)

        turns = take_turns("bank", ARMS, arguments.rounds, act, describe)
    found = {
        arm: {
            "tokens_per_second": median(speed for turn in own for speed in speeds(turn)),
            "seconds_a_step": median(seconds for turn in own for seconds in turn["seconds"][1:]),
            "peak_mib": median(turn["peak_mib"] for turn in own),
        }
        for arm, own in turns.items()
    }
    said = {arm: f"{name}, {fastest['ours']}" for arm, name in words(arguments.slots).items()}
    paces = {arm: found[arm]["tokens_per_second"] for arm in ARMS}
    peaks = {arm: found[arm]["peak_mib"] for arm in ARMS}
    result = write_result(
        "bank",
        arguments=arguments,
        question="What do eight adapters in one pass save in time, and cost in memory?",
        rows=[
            {
                "contender": arm,
                "format": fastest["ours"],
                "measurements": sum(len(turn["seconds"]) - 1 for turn in turns[arm]),
            }
            for arm in ARMS
        ],
        medians=found,
        answers={
            "bank8_step": Answer(
                ours=paces["together"],
                peer=paces["in-turn"],
                unit="real tokens/s",
                ours_was=said["together"],
                peer_was=said["in-turn"],
            ),
            "bank8_memory": Answer(
                ours=peaks["together"],
                peer=peaks["one"],
                unit="MiB",
                ours_was=said["together"],
                peer_was=said["one"],
            ),
        },
        checks={"largest_loss_difference": difference(turns), "race_of_formats": race},
        raw=turns,
        started=started,
    )
    print(json.dumps({key: result[key] for key in ("answers", "checks")}, indent=1))


def words(slots: int) -> dict[str, str]:
    """The arms, said."""
    return {
        "together": f"{slots} adapters in one pass",
        "in-turn": f"{slots} adapters one after another",
        "one": "one adapter with the tokens of all",
    }


def describe(turn: dict[str, Any]) -> str:
    """One line for whoever waits."""
    return f"{median(turn['seconds'][1:]):.2f} s a step, {turn['peak_mib']:.0f} MiB"


def difference(turns: dict[str, list[dict[str, Any]]]) -> float:
    """Largest difference of a loss of one slot and step between one pass and a run of its own."""
    together, alone = turns["together"][0]["losses"], turns["in-turn"][0]["losses"]
    pairs = ((together[slot], alone[slot]) for slot in together)
    return max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))


def run_arm(arm: str, job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every step, losses by slot, and the process's peak memory."""
    import torch

    torch.set_num_threads(job["threads"])
    slots = [f"s{k}" for k in range(job["slots"])]
    rows, size = examples_of(job["rows"]), job["slots"]
    by_step = [rows[step * size : (step + 1) * size] for step in range(job["steps"])]
    if arm == "together":
        own = [{slot: [step[k]] for k, slot in enumerate(slots)} for step in by_step]
        seconds, losses = train(job, slots, range(size), own)
    elif arm == "one":
        seconds, losses = train(job, slots[:1], range(1), [{slots[0]: step} for step in by_step])
    else:
        seconds, losses = runs_in_turn(job, slots, by_step)
    return {"seconds": seconds, "tokens": tokens_of(job), "losses": losses, "peak_mib": peak_mib()}


def train(
    job: dict[str, Any], slots: list[str], seeds: range, steps: list[dict[str, Any]], loaded: Any = None
) -> tuple[list[float], dict[str, list[float]]]:
    """Train fresh slots on a base, loaded here where none is given."""
    from lowregret.data.packing import microbatches
    from lowregret.specs import AdapterSpec
    from lowregret.training.step import train_step

    model, bank = loaded or bank_on(job["model"], job["format"], ())
    for slot, seed in zip(slots, seeds, strict=True):
        bank.join(slot, AdapterSpec(rank=job["rank"], init_seed=seed))
    optimizers = {slot: optimizer_of(bank, slot, lr=LR) for slot in slots}
    seconds: list[float] = []
    losses: dict[str, list[float]] = {slot: [] for slot in slots}
    for documents in steps:
        started = time.perf_counter()
        reports = train_step(model, microbatches(documents, job["budget"]), optimizers, factor=1.0)
        seconds.append(time.perf_counter() - started)
        for slot, report in reports.items():
            losses[slot].append(report.loss)
    return seconds, losses


def runs_in_turn(
    job: dict[str, Any], slots: list[str], by_step: list[list[Any]]
) -> tuple[list[float], dict[str, list[float]]]:
    """Each adapter by itself from its first step to its last; a step's seconds are those of all adapters."""
    loaded = bank_on(job["model"], job["format"], ())
    total, losses = [0.0] * len(by_step), dict[str, list[float]]()
    for k, slot in enumerate(slots):
        seconds, own = train(job, [slot], range(k, k + 1), [{slot: [step[k]]} for step in by_step], loaded)
        loaded[1].leave(slot)
        total = [a + b for a, b in zip(total, seconds, strict=True)]
        losses |= own
    return total, losses


if __name__ == "__main__":
    main()
