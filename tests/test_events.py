from __future__ import annotations

import pytest

from synthe_core.events import Event, Notice, Result, drain, results, without_results

EVENTS = (Notice("one"), Result({"a": 1}), Notice("two"), Result({"b": 2}), Notice("three"))


def test_results_are_yielded_and_the_rest_is_reported() -> None:
    seen: list[Event] = []
    assert list(results(EVENTS, seen.append)) == [EVENTS[1], EVENTS[3]]
    assert seen == [EVENTS[0], EVENTS[2], EVENTS[4]]


def test_a_result_is_yielded_before_the_verb_fails() -> None:
    def verb():
        yield Result({"a": 1})
        raise RuntimeError

    events = results(verb(), print)
    assert next(events) == Result({"a": 1})
    with pytest.raises(RuntimeError):
        next(events)


def test_without_results_appends_them() -> None:
    collected: list[Result] = []
    assert list(without_results(EVENTS, collected)) == [EVENTS[0], EVENTS[2], EVENTS[4]]
    assert collected == [EVENTS[1], EVENTS[3]]


def test_drain_runs_to_the_end_and_returns_the_last_result() -> None:
    seen: list[Event] = []
    assert drain(EVENTS, seen.append) == EVENTS[3] == drain(iter(EVENTS))
    assert len(seen) == 3
    with pytest.raises(ValueError, match="without a Result"):
        drain(EVENTS[:1])
