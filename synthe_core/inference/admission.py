"""Who is let in: how many rows and how many bytes of state there is room for, and when there may be again."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from synthe_core.errors import InputError
from synthe_core.inference.request import Busy

SHARE = 0.5
"""Of the memory that is free when the server starts, what states may take."""
LEAST, MOST = 1.0, 120.0  # seconds that a caller is told to wait


def free_memory() -> int:
    """Bytes that this process may still take, as the system estimates it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 8 << 30


class Admission:
    """At most `rows` at a time, of at most `memory` bytes together; at most `waiting` requests wait their turn."""

    def __init__(self, rows: int, waiting: int, memory: int) -> None:
        self.rows, self.waiting, self.memory = rows, waiting, memory
        self.taken = 0  # bytes
        self._seconds: deque[float] = deque(maxlen=64)

    def check(self, bytes: int, ahead: int) -> None:
        """Raises InputError for what never fits, and Busy where `ahead` requests wait already."""
        if bytes > self.memory:
            raise InputError(
                f"a text of this length takes {bytes / 1e6:,.0f} MB of state, and there are {self.memory / 1e6:,.0f}",
                "ask for less, or give the server more memory",
            )
        if ahead >= self.waiting:
            raise Busy(f"{ahead} requests are waiting already", self.wait(ahead))

    def wait(self, ahead: int) -> float:
        """Seconds until one more than `ahead` requests may have been let in, from what recent ones took."""
        each = sum(self._seconds) / len(self._seconds) if self._seconds else LEAST
        return min(MOST, max(LEAST, each * (ahead + 1) / self.rows))

    def fits(self, bytes: int, live: int) -> bool:
        return live < self.rows and (live == 0 or self.taken + bytes <= self.memory)

    def enter(self, bytes: int) -> None:
        self.taken += bytes

    def leave(self, bytes: int, seconds: float) -> None:
        self.taken -= bytes
        self._seconds.append(seconds)
