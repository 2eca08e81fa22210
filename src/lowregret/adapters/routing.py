"""Which rows of an activation belong to which slot.

A routing is made by its bank for one forward and its backward, and handed to the sites through the bank, never through
process-wide state. Rows of one slot are adjacent, so a slot is a span.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Span:
    """Rows `start` to `stop` (exclusive) belong to `slot`; None is the base model without an adapter.

    >>> Span(slot="r8", start=0, stop=5).stop
    5
    """

    slot: str | None
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Spans that cover all rows of a forward, in order.

    >>> routing = Routing.from_lengths({"r1": 3, "r8": 5})
    >>> [(s.slot, s.start, s.stop) for s in routing.spans_of(16)]  # two tokens a row
    [('r1', 0, 6), ('r8', 6, 16)]
    """

    spans: tuple[Span, ...]
    _made: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any], compare=False, repr=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What the sites of a forward need of its routing, made by the first of them; it lives as long as the routing.

        >>> routing = Routing.from_lengths({"r1": 3})
        >>> routing.once("rows", lambda: routing.num_rows), routing.once("rows", lambda: 0)
        (3, 3)
        """
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @classmethod
    def from_lengths(cls, lengths: Mapping[str | None, int] | Mapping[str, int]) -> Routing:
        """Spans of the given lengths, one after another."""
        spans: list[Span] = []
        start = 0
        for slot, length in lengths.items():
            spans.append(Span(slot=slot, start=start, stop=start + length))
            start += length
        return cls(spans=tuple(spans))

    @property
    def num_rows(self) -> int:
        """Rows covered."""
        return self.spans[-1].stop

    def spans_of(self, num_rows: int) -> tuple[Span, ...]:
        """The spans for an activation of `num_rows`, a whole multiple of the rows covered.

        A decoding step routes sequences; the activation may then hold several tokens of each.

        Raises:
            ValueError: `num_rows` is not a multiple.
        """
        if num_rows == self.num_rows:
            return self.spans
        factor, rest = divmod(num_rows, self.num_rows)
        if rest:
            raise ValueError(f"activation has {num_rows} rows, the routing covers {self.num_rows}")
        return tuple(Span(slot=s.slot, start=s.start * factor, stop=s.stop * factor) for s in self.spans)

    def selected(self, rows: list[int]) -> Routing:
        """The routing of the given rows only (the loss positions that reach the unembedding); those of a slot stand
        together, the slots in order."""
        lengths: dict[str | None, int] = {}
        position = 0
        for span in self.spans:
            begin = position
            while position < len(rows) and rows[position] < span.stop:
                position += 1
            if position > begin:
                lengths[span.slot] = lengths.get(span.slot, 0) + position - begin
        return Routing.from_lengths(lengths)
