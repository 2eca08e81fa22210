"""How long a plan takes: a 70B configuration over a local JSONL of a million rows, and the tokenising before it.

    python benchmarks/plan.py --rows 1000000 --data gsm8k/train.jsonl

The promises: under 2 s once the tokens are in the cache; GSM8K's 7,473 rows tokenised in under 10 s; no more than 2 GB
of memory for a million rows. Each figure is a process of its own with an empty cache, so that nothing is warm: one
measurement each, since a first time comes once.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from beside.envelope import write_result
from beside.turns import parse, parser_of

from lowregret.models.locate import locate_model
from lowregret.specs import ModelSpec

LLAMA_70B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def main() -> None:
    """Make the files, plan twice, and print the times."""
    started = time.perf_counter()
    parser = parser_of(__doc__, data="none", short={})
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the file that is made (1,000,000)")
    arguments = parse(parser, {})
    # The model's tokenizer stands in for the 70B's.
    folder = locate_model(ModelSpec(source=arguments.model)).path
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "llama-70b"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(LLAMA_70B))
        for name in TOKENIZER:
            if (folder / name).is_file():
                shutil.copy(folder / name, model / name)
        rows = write_rows(Path(scratch) / "rows.jsonl", arguments.rows)
        environment = {**os.environ, "LOWREGRET_CACHE": str(Path(scratch) / "cache")}
        found = {name: timed_plan(model, rows, environment) for name in ("first plan", "second plan")}
        if Path(arguments.data).is_file():
            found["the data given, first plan"] = timed_plan(model, Path(arguments.data), environment)
    write_result(
        "plan",
        arguments=arguments,
        question="How long does a plan take, and the tokenising before it?",
        rows=[{"contender": name, "measurements": 1} for name in found],
        medians=found,
        answers={},
        checks={},
        raw=found,
        started=started,
    )
    print(json.dumps(found, indent=1))


def write_rows(file: Path, number: int) -> Path:
    """Short questions and answers, all different."""
    rng = random.Random(0)
    with file.open("w") as out:
        for row in range(number):
            a, b = rng.randrange(10**6), rng.randrange(10**6)
            out.write(json.dumps({"question": f"Row {row}: what is {a} + {b}?", "answer": f"It is {a + b}."}) + "\n")
    return file


def timed_plan(model: Path, data: Path, environment: dict[str, str]) -> dict[str, float]:
    """Seconds and peak memory of one `lowregret plan`, start of Python included."""
    command = [sys.executable, "-m", "lowregret", "plan", "--model", str(model), "--data", str(data)]
    started = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(done.stderr[-2000:])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    plan = json.loads(done.stdout)
    return {
        "seconds": seconds,
        "peak_mib": max(before, peak) / 1024,
        "completion_tokens": plan["data_tokens"],
        "suggested_rank": plan["suggested_rank"],
    }


if __name__ == "__main__":
    main()
