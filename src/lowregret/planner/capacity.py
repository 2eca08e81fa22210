"""Bits that an adapter can hold against bits that the data brings (science.md section 2, "Capacity").

Two rules are in use and both are shown: 2 bits a parameter against 1 bit a completion token (so tokens / 2 parameters
suffice), and Tinker's stricter one, as many parameters as completion tokens. `OK` satisfies both, `TIGHT` the first
alone, `UNDERCAPACITY` neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lowregret.specs.shape import MatrixShape

BITS_PER_PARAMETER = 2.0
"""Facts stored per parameter after long training (Allen-Zhu and Li); our pilot measured 1.2 to 1.8 (science.md C6b)."""

BITS_PER_TOKEN = 1.0
"""Rule of thumb for the first epoch's log loss of a completion token: 0.69 nats."""

MAX_RANK = 512
"""Largest rank that the paper tried and that the bank takes."""

COMPLETION_TOKENS = "completion tokens"

Status = Literal["OK", "TIGHT", "UNDERCAPACITY"]


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The verdict on one rank.

    >>> Capacity(rank=8, params=10, bits=20.0, data_tokens=15, data_bits=15.0, status="TIGHT", reason="",
    ...     smallest_rank=6, strict_rank=12).status
    'TIGHT'
    """

    rank: int
    params: int
    """Adapter parameters, all matrices."""
    bits: float
    """Bits that they can hold."""
    data_tokens: int
    """Completion tokens that the run sees for the first time, or scored samples."""
    data_bits: float
    """Bits in them."""
    status: Status
    reason: str
    smallest_rank: int | None
    """Smallest rank whose bits suffice; None where even 512 (or the smallest matrix) does not."""
    strict_rank: int | None
    """Smallest rank with a parameter for every completion token; None where there is none."""


def adapter_params(matrices: Iterable[MatrixShape], rank: int) -> int:
    """Parameters of an adapter on these matrices: the sum of r (d_in + d_out)."""
    return sum(matrix.adapter_params(rank) for matrix in matrices)


def adapter_params_by_kind(matrices: Iterable[MatrixShape], rank: int) -> dict[str, int]:
    """The same by kind of matrix, in model order."""
    counts: dict[str, int] = {}
    for matrix in matrices:
        counts[matrix.kind] = counts.get(matrix.kind, 0) + matrix.adapter_params(rank)
    return counts


def largest_rank(matrices: Iterable[MatrixShape]) -> int:
    """Largest rank that every matrix can take (at an expert: its share of it), at most `MAX_RANK`."""
    sides = [min(m.d_in, m.d_out) * m.active_experts for m in matrices]
    return min([MAX_RANK, *sides])


def data_bits(tokens: int, *, bits_per_token: float = BITS_PER_TOKEN) -> float:
    """Bits in completion tokens, each seen for the first time.

    >>> data_bits(1000)
    1000.0
    """
    return tokens * bits_per_token


def rl_bits(samples: int, *, reward_bins: int = 2, pass_rates: Sequence[float] | None = None) -> float:
    """Bits that a policy-gradient run can learn from its rewards.

    Args:
        samples: scored completions of the whole run.
        reward_bins: distinct rewards; each sample carries at most log2 of it.
        pass_rates: for 0/1 rewards, the share of right answers of each prompt; each prompt counts an equal share of
            the samples with the entropy H2 of its pass rate, which is tighter.

    >>> rl_bits(320_000), rl_bits(100, pass_rates=[0.5, 1.0])
    (320000.0, 50.0)
    """
    if pass_rates is None:
        return samples * math.log2(reward_bins)
    if not pass_rates:
        return 0.0
    return samples * sum(binary_entropy(rate) for rate in pass_rates) / len(pass_rates)


def binary_entropy(probability: float) -> float:
    """H2 in bits.

    >>> binary_entropy(0.5), binary_entropy(0.0)
    (1.0, 0.0)
    """
    if probability <= 0.0 or probability >= 1.0:
        return 0.0
    return -(probability * math.log2(probability) + (1 - probability) * math.log2(1 - probability))


def smallest_rank(matrices: Sequence[MatrixShape], params: float) -> int | None:
    """Smallest rank with at least this many adapter parameters; None where the largest has fewer."""
    low, high = 1, largest_rank(matrices)
    if adapter_params(matrices, high) < params:
        return None
    while low < high:
        middle = (low + high) // 2
        if adapter_params(matrices, middle) >= params:
            high = middle
        else:
            low = middle + 1
    return low


def judge(
    matrices: Sequence[MatrixShape],
    *,
    rank: int,
    tokens: int,
    bits_per_token: float = BITS_PER_TOKEN,
    bits_per_parameter: float = BITS_PER_PARAMETER,
    unit: str = COMPLETION_TOKENS,
) -> Capacity:
    """Does this rank hold these completion tokens (or, in RL, scored samples)?

    The stricter rule speaks of completion tokens only: scored samples are judged by their bits alone.
    """
    params = adapter_params(matrices, rank)
    capacity, wanted = params * bits_per_parameter, data_bits(tokens, bits_per_token=bits_per_token)
    status: Status = "UNDERCAPACITY"
    strict = unit == COMPLETION_TOKENS
    if capacity >= wanted:
        status = "OK" if params >= tokens or not strict else "TIGHT"
    sign = {"OK": "hold", "TIGHT": "just hold", "UNDERCAPACITY": "can't hold"}[status]
    reason = f"{params:,} parameters x {bits_per_parameter:g} bits {sign} {tokens:,} {unit} x {bits_per_token:.3g} bits"
    if strict:
        reason += f"; the stricter rule wants {tokens:,} parameters"
    return Capacity(
        rank=rank,
        params=params,
        bits=capacity,
        data_tokens=tokens,
        data_bits=wanted,
        status=status,
        reason=reason,
        smallest_rank=smallest_rank(matrices, wanted / bits_per_parameter),
        strict_rank=smallest_rank(matrices, tokens) if strict else None,
    )
