"""Filters, temperature and the numbers that rows bring."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowregret.kernels import native
from lowregret.sampling.draw import draw, filtered, uniforms
from lowregret.specs import SamplingSpec
from tiny import needs_compiler

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


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_the_compiled_draw_is_torch_s(temperature: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token where the number falls into its part of the whole, with a vocabulary of several chunks."""
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(64, 3001, generator=generator)).to(dtype)
    logits[0, :2500] = float("-inf")
    numbers = torch.rand(64, generator=generator, dtype=torch.float64).tolist()
    spec = SamplingSpec(temperature=temperature)
    tokens, logprobs = draw(logits, numbers, spec)
    monkeypatch.setattr(native, "serves", lambda _: False)
    exact_tokens, exact_logprobs = draw(logits.double(), numbers, spec)
    if temperature == 0.0:
        assert torch.equal(logits.gather(1, tokens[:, None]), logits.gather(1, exact_tokens[:, None]))
        torch.testing.assert_close(logprobs.double(), exact_logprobs, rtol=1e-5, atol=1e-5)
        return
    probabilities = torch.softmax(logits.double() / temperature, -1)
    above = probabilities.cumsum(-1).gather(1, tokens[:, None])[:, 0]
    below = above - probabilities.gather(1, tokens[:, None])[:, 0]
    aim = torch.tensor(numbers, dtype=torch.float64)
    assert bool(((below - 1e-6 <= aim) & (aim < above + 1e-6)).all())
    assert float((tokens == exact_tokens).double().mean()) > 0.95
    torch.testing.assert_close(
        logprobs.double(), probabilities.gather(1, tokens[:, None])[:, 0].log(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_a_row_of_nan_gets_a_token_and_a_log_probability_of_nan(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "serves", lambda _: False)
    logits = torch.zeros(3, 40)
    logits[1, 7], logits[2] = float("nan"), float("nan")
    tokens, logprobs = draw(logits, [0.5, 0.5, 0.5], SamplingSpec())
    assert bool(((tokens >= 0) & (tokens < 40)).all())
    assert logprobs.isnan().tolist() == [False, True, True]
