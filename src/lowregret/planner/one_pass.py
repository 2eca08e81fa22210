"""What training several adapters in one pass saves, against one after another.

A layer costs something however few rows it is given: its weights have to come from memory, and its operations have to
be started. A step that is short of rows pays that mostly; one pass pays it once for all adapters. Counted as
multiply-adds, a step of m of them on L layers takes the time of L c + m, so that K adapters of m each gain
K (L c + m) / (L c + K m): K where steps are tiny, nothing where they are long.
"""

from __future__ import annotations

LAYER_MACS = 3.5e8
"""c, on a CPU: what a layer's fixed cost of a step is worth in multiply-adds. Chosen so that no measured bank of eight
is promised much more than it gave: 1.5 where `benchmarks/scaling.py` found 1.6, 1.2 where `benchmarks/bank.py` found
1.1. A line through the time of short steps gives more than twice as much: what a bank costs itself grows with K."""
WORTH_SAYING = 1.1
"""Gain below which one pass is called no faster."""


def one_pass_gain(*, macs: float, slots: int, layers: int, layer_macs: float = LAYER_MACS) -> float:
    """Time of so many adapters one after another over that of one pass, an estimate.

    Args:
        macs: multiply-adds of one step of one adapter.
        slots: adapters, K.
        layers: of the model, L.
        layer_macs: c of the module docstring.

    >>> round(one_pass_gain(macs=1e6, slots=8, layers=4), 1), round(one_pass_gain(macs=1e11, slots=8, layers=4), 2)
    (8.0, 1.01)
    """
    fixed = layers * layer_macs
    return slots * (fixed + macs) / (fixed + slots * macs)


def one_pass_text(gain: float) -> str:
    """For a reader.

    >>> one_pass_text(1.34), one_pass_text(1.02)
    ('about 1.3 times as fast as one after another', 'no faster than one after another: steps are long already')
    """
    if gain < WORTH_SAYING:
        return "no faster than one after another: steps are long already"
    return f"about {gain:.1f} times as fast as one after another"
