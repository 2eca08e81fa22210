"""Generated data of a closed vocabulary, for bases small enough to pretrain on a laptop: languages of known entropy,
facts that only memory can tell, and small sums. One word is one token of the micro bases' tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowregret.errors import DataError

END = "<end>"
VOCABULARY: tuple[str, ...] = (END, *(f"w{k}" for k in range(575)))
"""Words of the micro bases; `w0` to `w255` are values of facts, the next 256 parts of names, then numbers and signs."""
VALUES, NAMES, NUMBERS = range(256), range(256, 512), range(512, 543)
MAXIMUM, PLUS, EQUALS = "w543", "w544", "w545"

SENTENCE = 31
"""Words of a row of `markov`: 32 tokens with the end."""
SUCCESSORS = (0.4, 0.3, 0.2, 0.1)
"""Probabilities of what may follow a context; which words these are differs by context and language."""
STATES = {1: 64, 2: 24}
"""Order -> words of a language: 64 and 576 contexts."""
NAME_WORDS, VALUE_WORDS = 3, 8
FACT_BITS = VALUE_WORDS * math.log2(len(VALUES))
"""Of one row of `micro-facts`: 64."""

SOURCES = ("markov", "markov:first", "markov:second", "micro-facts", "max3", "add31")


@dataclass(frozen=True)
class Language:
    """A Markov language: after each context, four words with the probabilities of `SUCCESSORS`.

    >>> language = Language.draw(order=1, seed=0)
    >>> language.successors.shape
    (64, 4)
    """

    order: int
    successors: np.ndarray[Any, np.dtype[np.int64]]
    """(context, successor): word numbers; a context is the last `order` words as digits."""

    @classmethod
    def draw(cls, *, order: int, seed: int) -> Language:
        """The language of a seed."""
        rng = np.random.default_rng([order, seed])
        states = STATES[order]
        rows = [rng.permutation(states)[: len(SUCCESSORS)] for _ in range(states**order)]
        return cls(order=order, successors=np.array(rows))

    def sentence(self, rng: np.random.Generator, length: int = SENTENCE) -> list[str]:
        """Words drawn from the language; the first `order` are uniform."""
        states = STATES[self.order]
        words = list(rng.integers(states, size=self.order))
        picks = rng.choice(len(SUCCESSORS), size=length, p=SUCCESSORS)
        for pick in picks[self.order :]:
            context = 0
            for word in words[-self.order :]:
                context = context * states + int(word)
            words.append(self.successors[context, pick])
        return [f"w{word}" for word in words]


def entropy(order: int, length: int = SENTENCE) -> float:
    """Lowest loss that a model can reach on sentences of a language, nats a token with loss.

    The first word carries no loss; the rest of the first `order` are uniform; the end is certain.

    >>> round(entropy(1), 4)
    1.2386
    """
    each = -sum(p * math.log(p) for p in SUCCESSORS)
    return ((order - 1) * math.log(STATES[order]) + (length - order) * each) / length


def rows(source: str, number: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of a source of this module; the same for the same arguments."""
    if source not in _MAKERS:
        raise DataError(f"data {source} is not known; give one of {', '.join(SOURCES)}")
    return _MAKERS[source](number, seed)


def _sentences(orders: Sequence[int]) -> Callable[[int, int], Iterator[dict[str, Any]]]:
    def made(number: int, seed: int) -> Iterator[dict[str, Any]]:
        languages = [Language.draw(order=order, seed=seed) for order in orders]
        rng = np.random.default_rng([7, seed])
        for row in range(number):
            yield {"text": " ".join(languages[row % len(languages)].sentence(rng))}

    return made


def _facts(number: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([8, seed])
    names = rng.choice(len(NAMES) ** NAME_WORDS, size=number, replace=False)
    for name in names:
        parts = [int(name) // len(NAMES) ** k % len(NAMES) for k in range(NAME_WORDS)]
        values = rng.integers(len(VALUES), size=VALUE_WORDS)
        yield {
            "question": " ".join(f"w{NAMES[part]}" for part in parts),
            "answer": " ".join(f"w{VALUES[value]}" for value in values),
        }


def _largest(number: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([9, seed])
    for _ in range(number):
        three = rng.integers(len(NUMBERS), size=3)
        words = " ".join(f"w{NUMBERS[value]}" for value in three)
        yield {"question": f"{MAXIMUM} {words} {EQUALS}", "answer": f"w{NUMBERS[int(three.max())]}"}


def _sums(number: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([10, seed])
    for _ in range(number):
        a, b = (int(value) for value in rng.integers(len(NUMBERS), size=2))
        question = f"w{NUMBERS[a]} {PLUS} w{NUMBERS[b]} {EQUALS}"
        yield {"question": question, "answer": f"w{NUMBERS[(a + b) % len(NUMBERS)]}"}


_MAKERS: dict[str, Callable[[int, int], Iterator[dict[str, Any]]]] = {
    "markov": _sentences((1, 2)),
    "markov:first": _sentences((1,)),
    "markov:second": _sentences((2,)),
    "micro-facts": _facts,
    "max3": _largest,
    "add31": _sums,
}
