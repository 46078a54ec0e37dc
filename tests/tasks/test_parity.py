"""Parity by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import RandomState

from synthe_core.tasks.parity import Parity


def make(**settings):
    return Parity(Parity.Config(**settings))


def test_by_hand():
    inputs = np.array([[0, 1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0, 1]])
    assert make().solve(inputs).tolist() == [[0, 1, 0, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1, 0]]


def test_answers_are_counts_of_ones():
    inputs, targets, slices = make(length=13).batch(50, RandomState(0))
    for bits, answers in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert answers == [bits[: t + 1].count(1) % 2 for t in range(13)]
    assert slices["position"][7].tolist() == [1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8]


def test_both_answers_are_as_frequent_at_every_position():
    targets = make(length=40).batch(4000, RandomState(1)).targets
    assert np.abs(targets.mean(0) - 0.5).max() < 4.5 * 0.5 / 4000**0.5


@pytest.mark.parametrize("preset", ["quick", "standard"])
def test_it_is_tested_on_longer_strings_than_it_trains_on(preset):
    train, test, _ = Parity.preset(preset)
    lengths = [share.config.length for share in test]
    assert [n / max(share.config.length for share in train) for n in lengths] == [1, 2, 4, 8]
