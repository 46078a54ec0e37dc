"""How long the passes of a model took."""

from __future__ import annotations

from collections import deque
from statistics import median

RECENT = 64


class PassTimes:
    """Seconds of the last decoding passes by their rows, of one model."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}

    def record(self, rows: int, seconds: float) -> None:
        self._seconds.setdefault(rows, deque(maxlen=RECENT)).append(seconds)

    def __str__(self) -> str:
        """What passes of the most frequent number of rows brought; "" before the first one."""
        if not self._seconds:
            return ""
        rows, seconds = max(self._seconds.items(), key=lambda each: len(each[1]))
        count = "1 pass" if len(seconds) == 1 else f"{len(seconds)} passes"
        texts = "" if rows == 1 else f" of {rows} texts"
        return f"{rows / median(seconds):.2g} tokens/s measured in {count}{texts}"
