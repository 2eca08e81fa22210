"""The goals of sampling as they are set: whole prompts, 128 new tokens a row, one adapter, 16 and 64 rows.

    python benchmarks/sampling_long.py --data gsm8k/train.jsonl

`sampling.py` with fewer arms: about six minutes on two cores, too long for the short set, which draws 16 tokens.
"""

from __future__ import annotations

from sampling import main

if __name__ == "__main__":
    main("sampling_long", __doc__, many=0, all_arms=0)
