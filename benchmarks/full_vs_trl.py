"""Full fine-tuning beside TRL's SFTTrainer without PEFT: real tokens a second, on the same batches.

    python benchmarks/full_vs_trl.py --data gsm8k/train.jsonl

All weights train with AdamW, 8 sequences a step. Turns, race of number formats and checks are those of `sft_vs_trl.py`.
Ours keeps fp32 masters in every format, and in bf16 rounds its working copy stochastically, so that small updates act;
TRL with bf16 weights has no masters and loses most of them. That counts in its favour here: it is less work.
"""

from __future__ import annotations

from beside.training_beside_trl import run

if __name__ == "__main__":
    run(
        __file__,
        __doc__,
        method="full",
        question="How fast do all weights train?",
        answers={"full_cpu": ("tokens_per_second", "real tokens/s")},
    )
