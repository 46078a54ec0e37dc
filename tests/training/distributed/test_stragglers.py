"""A process that is slow is named, once; clocks that are apart are noticed."""

from __future__ import annotations

import time
from typing import Any

import pytest

from synthe_core.training.distributed import stragglers
from synthe_core.training.distributed.ranks import SINGLE, Ranks
from synthe_core.training.distributed.stragglers import Stragglers, Work, clocks_apart


def test_a_slow_rank_is_named_once_it_is_slow_twice() -> None:
    watch = Stragglers()
    slow = [1.0, 1.1, 3.0, 0.9]
    assert watch.add(slow) == ({"slowest_rank": 2.0, "slowest_ratio": 3.0}, None)
    assert (
        watch.add(slow)[1]
        == "all wait for rank 2 (3.0 times): its work takes longer than that of half of the processes"
    )
    assert watch.add(slow)[1] is None  # it was named
    assert watch.add([1.0, 1.0, 1.0, 1.0])[1] is None
    watch.add(slow)
    assert watch.add(slow)[1] is not None  # slow anew


def test_one_of_two_can_be_slow() -> None:
    watch = Stragglers()
    watch.add([4.0, 1.0])
    assert "rank 0 (4.0 times)" in str(watch.add([4.0, 1.0])[1])


@pytest.mark.parametrize("seconds", [[0.01, 0.05], [1.0, 1.4], [0.0, 0.0]])
def test_small_differences_are_none(seconds: list[float]) -> None:
    watch = Stragglers()
    assert [watch.add(seconds)[1] for _ in range(3)] == [None] * 3


def test_work_is_what_a_thread_does_where_it_waits_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"perf_counter": iter([0.0, 5.0, 10.0, 12.0]), "thread_time": iter([0.0, 1.0])}
    for name, values in clocks.items():
        monkeypatch.setattr(stragglers.time, name, values.__next__)
    alone, waits = Work(waits=False), Work(waits=True)
    for _ in range(2):
        with alone.timed():
            pass
    with waits.timed():
        pass
    assert (alone.take(), alone.take(), waits.take()) == (7.0, 0.0, 1.0)


class Clocks(Ranks):
    """Ranks whose clocks differ from this one's by so many seconds."""

    def __init__(self, *apart: float) -> None:
        self.size, self._apart = len(apart), apart

    def numbers(self, *values: float) -> list[list[float]]:
        return [[values[0] + apart] for apart in self._apart]


@pytest.mark.parametrize(
    ("ranks", "sentence"),
    [
        (SINGLE, None),
        (Clocks(0, 2, -59), None),
        (Clocks(0, 2, -7200), "the clock of rank 2 is 7200 seconds behind that of rank 0"),
        (Clocks(0, 90), "the clock of rank 1 is 90 seconds ahead of that of rank 0"),
    ],
)
def test_clocks_that_are_apart_are_noticed(ranks: Any, sentence: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e9)
    notice = clocks_apart(ranks)
    assert notice is None if sentence is None else str(notice).startswith(sentence)
