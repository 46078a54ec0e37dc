"""Processes whose own work takes longer than that of the others, for whom all wait."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median_low

from synthe_core.training.distributed.ranks import Ranks

FACTOR = 1.5
"""A process is slow that takes so many times as long as half of them."""
LEAST = 0.1
"""Seconds between two logs by which it must be slower."""
TIMES = 2
"""In so many logs in a row."""
CLOCKS = 60.0
"""Seconds by which clocks of machines may differ."""


class Work:
    """Seconds of a process's own work. Where a pass waits for other processes, only the time of its thread counts."""

    def __init__(self, waits: bool) -> None:
        self._clock = time.thread_time if waits else time.perf_counter
        self._seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the seconds of the block."""
        start = self._clock()
        try:
            yield
        finally:
            self._seconds += self._clock() - start

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class Stragglers:
    """Which processes are slow, and since how many logs."""

    def __init__(self) -> None:
        self._slow: dict[int, int] = {}

    def add(self, seconds: Sequence[float]) -> tuple[dict[str, float], str | None]:
        """Figures of the work of every rank since the last log, and a sentence where one is newly slow."""
        usual = median_low(seconds)
        slowest = max(range(len(seconds)), key=lambda rank: seconds[rank])
        ratio = seconds[slowest] / max(usual, 1e-9)
        figures = {"slowest_rank": float(slowest), "slowest_ratio": ratio}
        slow = {rank for rank, each in enumerate(seconds) if each > FACTOR * usual and each > usual + LEAST}
        self._slow = {rank: self._slow.get(rank, 0) + 1 for rank in sorted(slow)}
        new = [rank for rank, count in self._slow.items() if count == TIMES]
        if not new:
            return figures, None
        named = ", ".join(f"rank {rank} ({seconds[rank] / max(usual, 1e-9):.1f} times)" for rank in new)
        return figures, f"all wait for {named}: its work takes longer than that of half of the processes"


def clocks_apart(ranks: Ranks) -> str | None:
    """A sentence where the clock of a process is far from that of rank 0; None where they agree."""
    if ranks.size == 1:
        return None
    ranks.meet()
    times = [each[0] for each in ranks.numbers(time.time())]
    rank = max(range(ranks.size), key=lambda each: abs(times[each] - times[0]))
    apart = times[rank] - times[0]
    if abs(apart) <= CLOCKS:
        return None
    way = "ahead of" if apart > 0 else "behind"
    return f"the clock of rank {rank} is {abs(apart):.0f} seconds {way} that of rank 0, which decides what a budget is"
