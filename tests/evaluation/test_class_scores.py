"""Scores of a classifier against the same counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from synthe_core.evaluation.class_scores import class_scores
from synthe_core.evaluation.wilson_interval import wilson_interval


def test_scores_of_six_texts():
    probabilities = np.array(
        [[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.3, 0.6, 0.1]]
    )
    scores = class_scores(probabilities, np.array([0, 0, 1, 1, 1, 1]), ["a", "b", "c"])
    assert scores.texts == 6 and scores.accuracy == pytest.approx(4 / 6) and scores.chance == pytest.approx(4 / 6)
    assert scores.confusion == [[1, 1, 0], [1, 3, 0], [0, 0, 0]]
    first, second, third = scores.classes
    assert (first.name, first.texts, first.predicted) == ("a", 2, 2)
    assert (first.precision, first.recall, first.f1) == pytest.approx((0.5, 0.5, 0.5))
    assert (second.precision, second.recall, second.f1) == pytest.approx((0.75, 0.75, 0.75))
    assert (third.texts, third.predicted, third.precision, third.recall, third.f1) == (0, 0, 0, 0, 0)
    assert scores.macro_f1 == pytest.approx(0.625)  # of the two classes that occur
    likelihoods = [0.7, 0.4, 0.8, 0.7, 0.3, 0.6]
    assert scores.nats == pytest.approx(-np.log(likelihoods).mean())
    # every text is a bin of its own, and the highest probability of four of them is right
    gaps = [abs(p - hit) for p, hit in zip([0.7, 0.5, 0.8, 0.7, 0.6, 0.6], [1, 0, 1, 1, 0, 1], strict=True)]
    assert scores.ece == pytest.approx(np.mean(gaps))
    assert sum(each.answers for each in scores.bins) == 6
    pairs = [(p > q) + 0.5 * (p == q) for p in (0.7, 0.8, 0.7, 0.6) for q in (0.5, 0.6)]
    assert scores.auroc == pytest.approx(np.mean(pairs))


def test_a_probability_of_zero_is_finite():
    scores = class_scores(np.array([[1.0, 0.0]]), np.array([1]), ["a", "b"])
    assert math.isfinite(scores.nats) and scores.nats > 100 and scores.accuracy == 0


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilsons_interval(hits, count, low, high):
    """The two solutions p of (p - hits / n)² = z² p (1 - p) / n."""
    interval = wilson_interval(hits, count)
    assert interval == pytest.approx((low, high), abs=5e-5)
    for p in interval:
        if count and 0 < p < 1:
            assert (p - hits / count) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / count)
