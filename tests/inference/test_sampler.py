"""What the filters and penalties of sampling keep."""

from __future__ import annotations

import pytest
import torch

from synthe_core.errors import WorkError
from synthe_core.inference.sampler import SamplingState, sample
from synthe_core.inference.sampling_params import SamplingParams


@pytest.mark.parametrize(
    "sampling,allowed",
    [
        (SamplingParams(temperature=0), {3}),
        (SamplingParams(top_k=2), {3, 2}),
        (SamplingParams(top_p=0.6), {3}),
        (SamplingParams(top_p=0.7), {3, 2}),
        (SamplingParams(min_p=0.3), {3, 2}),
        (SamplingParams(), {0, 1, 2, 3}),
    ],
)
def test_filters_keep_their_tokens(sampling, allowed):
    logits = torch.log(torch.tensor([[0.04, 0.08, 0.24, 0.64]])).expand(400, -1)
    rows = [SamplingState.create(sampling, seed, 4, [], logits.device) for seed in range(400)]
    assert set(sample(logits, rows)) == allowed


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=4e-259),
        SamplingParams(temperature=1e-40),
        SamplingParams(top_p=1e-300),
        SamplingParams(min_p=5e-324),
    ],
)
def test_settings_too_small_for_float32_are_no_error(sampling):
    logits = torch.tensor([[3.0, 2.0, -80.0, 1.0], [0.0, -1.0, -2.0, -torch.inf]])
    rows = [SamplingState.create(sampling, seed, 4, [], logits.device) for seed in range(2)]
    picked = torch.tensor(sample(logits, rows))
    assert (logits.gather(1, picked[:, None]) > -torch.inf).all()
    if sampling.min_p == 0:
        assert picked.tolist() == [0, 0]


def test_repetition_penalty_lowers_previous_tokens():
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    greedy = SamplingParams(temperature=0, repetition_penalty=1.5)
    assert sample(logits, [SamplingState.create(greedy, 0, 3, [0, 2], logits.device)]) == [1]
    assert sample(logits, [SamplingState.create(SamplingParams(temperature=0), 0, 3, [0, 2], logits.device)]) == [0]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_without_a_next_token_fails_alone(temperature, bad):
    """One with NaN among its scores, an infinite one, or none that may come; the others draw what they draw alone."""
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    sampling = SamplingParams(temperature=temperature)

    def rows():
        return [SamplingState.create(sampling, seed, 40, [], logits.device) for seed in range(5)]

    expected = sample(logits, rows())
    broken = logits.clone()
    broken[2, slice(None) if bad == -torch.inf else 7] = bad
    tokens = sample(broken, rows())
    assert isinstance(tokens[2], WorkError)
    assert ("allows no next token" if bad == -torch.inf else "not finite") in tokens[2].message
    assert tokens[:2] + tokens[3:] == expected[:2] + expected[3:]


def test_draws_have_the_distribution_of_the_probabilities():
    """Chi-squared over 20,000 draws; tokens of probability zero are never drawn, not even the first and the last."""
    logits = torch.tensor([-torch.inf, 1.0, 0.0, -torch.inf, 2.0, -1.0, -torch.inf])
    state = SamplingState.create(SamplingParams(temperature=1.0), 5, 7, [], torch.device("cpu"), None)
    counts = torch.zeros(7)
    for _ in range(200):
        for token in sample(logits.repeat(100, 1), [state] * 100):
            counts[token] += 1
    expected = 20_000 * logits.softmax(-1)
    drawn = expected > 0
    assert not counts[~drawn].any()
    assert ((counts - expected)[drawn] ** 2 / expected[drawn]).sum() < 16.3  # 0.1% of chi-squared with 3 degrees
