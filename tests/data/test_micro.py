"""Languages whose entropy is what their sentences show, facts of known bits, sums that are right."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from lowregret.data import micro
from lowregret.data.generated import is_generated, rows
from lowregret.errors import DataError


@pytest.mark.parametrize("order", [1, 2])
def test_sentences_have_the_stated_entropy(order: int):
    language = micro.Language.draw(order=order, seed=3)
    rng = np.random.default_rng(0)
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for _ in range(4000):
        words = language.sentence(rng)
        for end in range(order, len(words)):
            counts[tuple(words[end - order : end])][words[end]] += 1
    assert len(counts) == micro.STATES[order] ** order
    assert max(len(counter) for counter in counts.values()) == len(micro.SUCCESSORS)
    total = sum(sum(counter.values()) for counter in counts.values())
    plug_in = -sum(n * math.log(n / sum(c.values())) for c in counts.values() for n in c.values()) / total
    each = -sum(p * math.log(p) for p in micro.SUCCESSORS)
    assert plug_in == pytest.approx(each, rel=0.02)
    # A sentence of 31 words has 31 tokens with loss: 30 further words and the end.
    expected = ((order - 1) * math.log(micro.STATES[order]) + (31 - order) * each) / 31
    assert micro.entropy(order) == pytest.approx(expected)


def test_the_same_seed_gives_the_same_rows_and_another_seed_another_language():
    assert list(rows("markov", size=20, seed=1)) == list(rows("markov", size=20, seed=1))
    assert list(rows("markov", size=20, seed=1)) != list(rows("markov", size=20, seed=2))
    first, second = (micro.Language.draw(order=1, seed=seed) for seed in (1, 2))
    assert (first.successors != second.successors).mean() > 0.9


def test_facts_are_distinct_and_their_values_uniform():
    made = list(rows("micro-facts", size=2000, seed=0))
    assert len({row["question"] for row in made}) == 2000
    values = Counter(word for row in made for word in row["answer"].split())
    assert set(values) == {f"w{k}" for k in micro.VALUES}
    assert micro.FACT_BITS == 64
    # Chi-square of 256 equally likely values: mean 255, standard deviation 23.
    expected = 2000 * 8 / 256
    assert 150 < sum((n - expected) ** 2 / expected for n in values.values()) < 360


def test_maxima_and_sums_are_right():
    number = {f"w{value}": index for index, value in enumerate(micro.NUMBERS)}
    for row in rows("max3", size=50, seed=0):
        assert number[row["answer"]] == max(number[word] for word in row["question"].split()[1:4])
    for row in rows("add31", size=50, seed=0):
        a, _, b, _ = row["question"].split()
        assert number[row["answer"]] == (number[a] + number[b]) % 31


@pytest.mark.parametrize("source", micro.SOURCES)
def test_every_word_is_in_the_vocabulary(source: str):
    assert is_generated(source)
    for row in rows(source, size=30, seed=5):
        assert set(" ".join(row.values()).split()) <= set(micro.VOCABULARY)


def test_an_unknown_source_is_refused_and_a_context_has_different_successors():
    with pytest.raises(DataError, match="markov:third is not known"):
        micro.rows("markov:third", 1, 0)
    for row in micro.Language.draw(order=2, seed=0).successors:
        assert len(set(row)) == 4
    assert len(set(micro.VOCABULARY)) == len(micro.VOCABULARY) == 576
