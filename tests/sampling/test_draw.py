"""Filters, temperature and the numbers that rows bring."""

from __future__ import annotations

import numpy as np
import torch

from lowregret.sampling.draw import draw, filtered, uniforms
from lowregret.specs import SamplingSpec

LOGITS = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]))


def test_uniforms_are_uniform_and_independent_of_their_neighbours() -> None:
    numbers = np.array(uniforms(list(range(20_000)), [0] * 20_000))
    assert 0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1
    # A uniform's mean has the standard deviation 1 / sqrt(12 n).
    assert abs(numbers.mean() - 0.5) < 5 / np.sqrt(12 * 20_000)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
    along = np.array(uniforms([7] * 20_000, list(range(20_000))))
    assert abs(np.corrcoef(along[:-1], along[1:])[0, 1]) < 0.03
    counts, _ = np.histogram(along, 20, (0, 1))
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_a_token_is_drawn_by_where_the_number_falls() -> None:
    for number, expected in ((0.0, 0), (0.39, 0), (0.41, 1), (0.69, 1), (0.71, 2), (0.91, 3), (1 - 1e-12, 3)):
        tokens, logprobs = draw(LOGITS[:1], [number], SamplingSpec())
        assert tokens.tolist() == [expected]
        torch.testing.assert_close(logprobs, LOGITS[0, tokens])


def test_top_k_and_top_p_leave_the_log_probability_as_it_is() -> None:
    torch.testing.assert_close(filtered(LOGITS, top_k=2, top_p=1.0).isfinite().sum(-1), torch.tensor([2, 2]))
    assert filtered(LOGITS, top_k=None, top_p=0.69).isfinite().tolist() == [
        [True, True, False, False],
        [False, False, True, True],
    ]
    assert filtered(LOGITS, top_k=None, top_p=0.01).isfinite().sum(-1).tolist() == [1, 1]
    for number in np.linspace(0, 0.999, 50):
        tokens, logprobs = draw(LOGITS, [float(number)] * 2, SamplingSpec(top_k=2))
        assert tokens[0] in (0, 1)
        assert tokens[1] in (2, 3)
        torch.testing.assert_close(logprobs, LOGITS.gather(1, tokens[:, None])[:, 0])


def test_temperature_sharpens_and_zero_takes_the_most_likely() -> None:
    _, cold = draw(LOGITS[:1], [0.1], SamplingSpec(temperature=0.5))
    torch.testing.assert_close(cold, torch.log(torch.tensor([0.16 / 0.30])))
    tokens, logprobs = draw(LOGITS, [0.99, 0.01], SamplingSpec(temperature=0.0))
    assert tokens.tolist() == [0, 3]
    torch.testing.assert_close(logprobs, torch.log(torch.tensor([0.4, 0.4])))
