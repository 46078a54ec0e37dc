"""The growth of cost and the bytes of state that `synthe bench speed --part learners` reports."""

from __future__ import annotations

from synthe_core.benchmarks.learners import growth
from synthe_core.events import Measurement, Notice
from synthe_core.layers import build, parse


def test_every_length_is_measured_and_the_state_is_that_of_the_longest():
    result = [e for e in growth((8, 16), 32, 1, "cpu", ["attention", "kalman"]) if isinstance(e, Measurement)]
    assert [e.case for e in result] == ["attention T=8", "attention T=16", "kalman T=8", "kalman T=16"]
    assert [e.values["growth"] for e in result[::2]] == [1.0, 1.0]
    assert all(e.values["us_per_token"] > 0 and e.values["growth"] > 0 for e in result)
    for event in result:
        learner = build(parse(event.values["candidate"]), 32)
        assert event.values["state_bytes"] == learner.state_bytes(16)


def test_a_learner_that_does_not_fit_the_width_is_reported_and_skipped():
    (notice,) = [e for e in growth((8,), 30, 1, "cpu", ["attention"]) if isinstance(e, Notice)]
    assert "attention is left out" in notice.message
