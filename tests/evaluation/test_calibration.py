"""Figures of confidence against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from synthe_core.evaluation.calibration import Bin, area, auroc, calibration_error, reliability, risk_coverage

SCORE = np.array([0.9, 0.8, 0.6, 0.3])
RIGHT = np.array([True, False, True, False])


def test_risk_and_coverage_by_hand():
    risk = risk_coverage(SCORE, RIGHT)
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 2 / 4])
    assert area(risk) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    np.testing.assert_allclose(risk_coverage(SCORE, RIGHT[::-1]), [1, 1 / 2, 2 / 3, 1 / 2])


def test_equal_scores_count_as_in_random_order():
    """Three ties of which one is wrong: each is a third of a mistake."""
    risk = risk_coverage(np.array([0.5, 0.9, 0.5, 0.5]), np.array([True, False, True, False]))
    np.testing.assert_allclose(risk, [1, (1 + 1 / 3) / 2, (1 + 2 / 3) / 3, 2 / 4])
    flat = risk_coverage(np.ones(50), np.arange(50) % 5 > 0)
    np.testing.assert_allclose(flat, 0.2)  # a score that knows nothing


def test_auroc_by_hand():
    assert auroc(SCORE, RIGHT) == pytest.approx(3 / 4)  # of the pairs (right, wrong): 0.9 > 0.8, 0.9 > 0.3, 0.6 > 0.3
    assert auroc(-SCORE, RIGHT) == pytest.approx(1 / 4)
    assert auroc(np.array([0.5, 0.5, 0.7]), np.array([True, False, False])) == pytest.approx(1 / 4)  # half of one pair
    assert np.isnan(auroc(SCORE, np.ones(4, dtype=bool)))


def test_auroc_is_that_of_all_pairs():
    draw = np.random.default_rng(0)
    score, right = draw.integers(0, 9, 200) / 9, draw.random(200) < 0.4
    pairs = score[right][:, None] - score[~right][None]
    assert auroc(score, right) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_calibration_error_by_hand():
    score = np.array([0.2, 0.9, 0.4, 0.7])
    bins = reliability(score, np.array([False, True, True, True]), bins=2)
    assert bins == [Bin(pytest.approx(0.3), 0.5, 2), Bin(pytest.approx(0.8), 1.0, 2)]
    assert calibration_error(bins) == pytest.approx(0.5 * 0.2 + 0.5 * 0.2)


def test_bins_have_equal_mass_and_cover_all_answers():
    draw = np.random.default_rng(1)
    score = draw.random(1000) ** 4  # most are small
    bins = reliability(score, draw.random(1000) < score)
    assert len(bins) == 15 and sum(each.answers for each in bins) == 1000
    assert {each.answers for each in bins} == {66, 67}
    assert [each.score for each in bins] == sorted(each.score for each in bins)
    assert calibration_error(bins) < 0.05  # calibrated, up to chance
    assert calibration_error(reliability(score, draw.random(1000) < 0.5)) > 0.2
    assert len(reliability(SCORE, RIGHT)) == 4  # fewer answers than bins
