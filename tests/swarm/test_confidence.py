"""Confidence: a record by domain, joined with the model's own signals, calibrated on what was rated."""

from __future__ import annotations

import numpy as np
import pytest

from synthe_core.swarm.confidence import (
    Calibration,
    Rating,
    Records,
    Signals,
    expected_calibration_error,
    mean_signals,
)
from synthe_core.swarm.spec import ConfidenceSpec


def test_a_domain_begins_at_the_overall_record():
    records = Records(ConfidenceSpec(), [Rating("a", "sql", 1.0)] * 8 + [Rating("a", "poems", 0.0)] * 2)
    assert records.overall("a").mean == pytest.approx(9 / 12)
    assert records.of("a", "sql").mean > records.of("a", "new").mean > records.of("a", "poems").mean
    assert records.of("a", "new").mean == pytest.approx(records.overall("a").mean)
    assert records.of("a", "sql").deviation < records.of("a", "new").deviation
    assert records.of("b", "sql").mean == 0.5
    records.add(Rating("a+b", "sql", 1.0))
    assert records.overall("b").mean == records.overall("a+b").mean == pytest.approx(2 / 3)
    assert records.overall("a").mean == pytest.approx(10 / 13)
    assert {domain: count for domain, (_, count) in records.domains("a").items()} == {"sql": 9, "poems": 2}


def test_confidence_is_the_record_before_anything_is_rated():
    for record in (0.1, 0.5, 0.9):
        assert Calibration()(Signals(record, 0.7, -0.3, 0.8)) == pytest.approx(record, abs=1e-6)


def test_calibration_learns_which_signals_to_trust():
    draw = np.random.default_rng(0)
    ratings, truth = [], []
    for _ in range(600):
        logprob = float(draw.normal(-1, 0.7))
        p = 1 / (1 + np.exp(-2.5 * (logprob + 1)))
        success = float(draw.random() < p)
        ratings.append(Rating("a", "x", success, Signals(0.5, 0.5, logprob, 0.5)))
        truth.append(p)
    fitted = Calibration(ratings[:300])
    predicted = [fitted(each.signals) for each in ratings[300:]]
    success = [each.success for each in ratings[300:]]
    constant = expected_calibration_error([0.9] * 300, success)
    assert expected_calibration_error(predicted, success) < 0.1 < constant
    assert np.corrcoef(predicted, truth[300:])[0, 1] > 0.95
    shuffled = Calibration([ratings[i] for i in draw.permutation(300)])
    assert np.allclose(fitted.weights, shuffled.weights, atol=1e-6)


def test_what_has_no_tokens_is_a_wild_guess():
    assert mean_signals([], [])["confidence"] == 0
    assert mean_signals([-1.0, -3.0], [0.5, 1.0]) == {"logprob": -2.0, "confidence": 0.75}
    assert expected_calibration_error([], []) is None
