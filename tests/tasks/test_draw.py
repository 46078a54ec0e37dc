"""Draws: uniform where they say so, and one after another in proportion to the weights left."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import RandomState

from synthe_core.tasks.draw import digits, digits_chance, distinct, marked, octave, smallest, weighted
from synthe_core.tasks.task import UNSCORED


def surprising(counts: np.ndarray, expected: np.ndarray) -> bool:
    """Chi-square: more than 4 standard deviations above its mean."""
    freedom = len(counts) - 1
    return ((counts - expected) ** 2 / expected).sum() > freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(("low", "high", "count"), [(3, 8, 5), (3, 8, 2), (3, 203, 6), (0, 50, 30), (0, 1, 1)])
def test_distinct_integers_are_distinct_and_uniform_at_every_place(low, high, count):
    drawn = distinct(RandomState(0), 20_000, low, high, count)
    assert drawn.dtype == np.int64 and drawn.shape == (20_000, count)
    assert drawn.min() == low and drawn.max() == high - 1
    assert all(len(set(row)) == count for row in drawn[:500].tolist())
    for place in {0, count - 1} if high - low > 1 else ():
        counts = np.bincount(drawn[:, place] - low, minlength=high - low)
        assert not surprising(counts, np.full(high - low, 20_000 / (high - low)))


def test_pairs_of_distinct_integers_are_uniform_when_rows_are_redrawn():
    drawn = distinct(RandomState(1), 60_000, 0, 6, 2)
    counts = np.bincount(drawn[:, 0] * 6 + drawn[:, 1], minlength=36)
    assert (counts[::7] == 0).all()
    others = counts[counts > 0]
    assert len(others) == 30
    assert not surprising(others, np.full(30, 2_000))


def test_no_integers_of_a_range():
    assert distinct(RandomState(0), 3, 0, 5, 0).shape == (3, 0)


def test_smallest_are_those_of_a_full_sort():
    noise = RandomState(0).random_sample((50, 40))
    for count in (1, 7, 40):
        assert np.array_equal(smallest(noise, count), np.argsort(noise, axis=1)[:, :count])


def test_weighted_draws_are_those_of_numpys_choice_without_replacement():
    weights = np.array([4.0, 2.0, 1.0, 1.0, 0.5])
    p = weights / weights.sum()
    rows = 40_000
    drawn = weighted(RandomState(0), rows, weights, 3)
    assert not surprising(np.bincount(drawn[:, 0], minlength=5), rows * p)
    # the second one given the first: in proportion to the weights left
    second = drawn[drawn[:, 0] == 0, 1]
    assert not surprising(np.bincount(second, minlength=5)[1:], len(second) * p[1:] / p[1:].sum())
    reference = RandomState(1)
    chosen = np.stack([reference.choice(5, size=3, replace=False, p=p) for _ in range(10_000)])
    frequency, expected = (np.bincount(x.ravel(), minlength=5) / len(x) for x in (drawn, chosen))
    assert np.abs(frequency - expected).max() < 4 * np.sqrt(0.25 / 10_000 + 0.25 / rows)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_digits_make_uniform_numbers_and_the_chance_of_guessing_them(count):
    drawn = digits(RandomState(0), (30_000,), count)
    numbers = (drawn * 10 ** np.arange(count - 1, -1, -1)).sum(axis=1)
    assert numbers.min() >= 10 ** (count - 1)
    if count < 3:
        every = 9 * 10 ** (count - 1)
        assert not surprising(np.bincount(numbers)[10 ** (count - 1) :], np.full(every, 30_000 / every))
    guess = sum(np.bincount(drawn[:, place], minlength=10).max() for place in range(count)) / drawn.size
    assert guess == pytest.approx(digits_chance(count), abs=0.008)


def test_marks_and_octaves():
    assert marked(4, np.array([[2, 0]]), np.array([[7, 8]])).tolist() == [[8, UNSCORED, 7, UNSCORED]]
    every = np.arange(1, 5_000)
    assert octave(every).tolist() == [1 << (n.bit_length() - 1) for n in every.tolist()]
