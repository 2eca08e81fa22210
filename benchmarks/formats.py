"""In which number format is each side fastest on this machine? The race that the other scripts choose by.

    python benchmarks/formats.py --data gsm8k/train.jsonl

Ours in fp32 and bf16, TRL in fp32, with autocast to bf16 and with bf16 weights; an adapter, and (without --short) all
weights. Two short documents a step: only the order counts. A format that takes more than twice as long
as the side's best so far is stopped and listed as such.
"""

from __future__ import annotations

from beside.formats import child, race
from beside.turns import parse, parser_of


def main() -> None:
    """Race, and write `formats.json`."""
    arguments = parse(parser_of(__doc__, data="reasoning-gym:number_sorting", short={}), {})
    if arguments.child:
        child(arguments.child, arguments.job)
        return
    print(race(arguments, ("lora",) if arguments.short else ("lora", "full"))["checks"]["fastest"])


if __name__ == "__main__":
    main()
