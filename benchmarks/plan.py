"""How long a plan takes: a 70B configuration over a local JSONL of a million rows, and the tokenising before it.

    python benchmarks/plan.py --tokenizer smollm2-135m --rows 1000000 --gsm8k gsm8k/train.jsonl

The promises: under 2 s once the tokens are in the cache; GSM8K's 7,473 rows tokenised in under 10 s; no more than 2 GB
of memory for a million rows. Each figure is a process of its own with an empty cache, so that nothing is warm.
"""

from __future__ import annotations

import argparse
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="smollm2-135m", help="model whose tokenizer stands in for the 70B's")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--gsm8k", help="GSM8K's train.jsonl")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/plan.json"))
    arguments = parser.parse_args()
    folder = locate_model(ModelSpec(source=arguments.tokenizer)).path
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "llama-70b"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(LLAMA_70B))
        for name in TOKENIZER:
            if (folder / name).is_file():
                shutil.copy(folder / name, model / name)
        rows = write_rows(Path(scratch) / "rows.jsonl", arguments.rows)
        environment = {**os.environ, "LOWREGRET_CACHE": str(Path(scratch) / "cache")}
        summary: dict[str, object] = {"rows": arguments.rows, "threads": os.cpu_count()}
        summary["first_plan"] = timed_plan(model, rows, environment)
        summary["second_plan"] = timed_plan(model, rows, environment)
        if arguments.gsm8k:
            summary["gsm8k"] = timed_plan(model, Path(arguments.gsm8k), environment)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


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
