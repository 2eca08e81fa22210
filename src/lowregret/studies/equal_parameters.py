"""Ranks at which adapters on different layers have equally many parameters."""

from __future__ import annotations

from collections.abc import Mapping


def matched_ranks(params: Mapping[str, int], least: int, *, most: int | None = None) -> dict[str, int]:
    """Ranks, one a kind of matrix, at which the adapters have equally many parameters.

    Args:
        params: adapter parameters of each kind at rank 1.
        least: smallest rank of the first kind.
        most: its largest; 8 x least if None, or if that is less.

    Returns:
        The smallest ranks of equal counts, the first in least..most; else those whose counts differ least.

    >>> matched_ranks({"attention": 1024, "mlp": 1536, "all": 2560}, 8)
    {'attention': 15, 'mlp': 10, 'all': 6}
    """
    first = next(iter(params))

    def mismatch(rank: int) -> float:
        counts = [number * params[kind] for kind, number in _nearest(params, rank * params[first]).items()]
        return max(counts) / min(counts)

    most = max(least, min(8 * least, most or 8 * least))
    return _nearest(params, params[first] * min(range(least, most + 1), key=mismatch))


def _nearest(params: Mapping[str, int], budget: int) -> dict[str, int]:
    """Of each kind the rank whose count comes nearest to a budget."""
    return {kind: max(1, round(budget / each)) for kind, each in params.items()}
