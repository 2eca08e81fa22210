"""Training an adapter beside TRL's SFTTrainer with PEFT: real tokens a second and peak memory, on the same batches.

    python benchmarks/sft_vs_trl.py --data gsm8k/train.jsonl

Rank 16 on all linear layers, 8 sequences a step. Each turn is a process of its own, so that its peak memory is its own;
ours and the peer take turns, never run side by side, and figures are medians over steps after each turn's first. A
short race (`formats.py`) chooses the number format of either side: TRL in fp32, with autocast to bf16 or with bf16
weights. All start from one adapter, so that losses can be compared as well: on the first batch in any format, on all
batches where both sides compute in fp32; and gradients by their cosine to those of autograd in fp32, with a B that is
not zero.
"""

from __future__ import annotations

from beside.training_beside_trl import run

if __name__ == "__main__":
    run(
        __file__,
        __doc__,
        method="lora",
        question="How fast does an adapter of rank 16 train, and in how much memory?",
        answers={
            "sft_lora_cpu": ("tokens_per_second", "real tokens/s"),
            "sft_memory_cpu": ("peak_mib", "MiB"),
        },
    )
