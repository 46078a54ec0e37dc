"""Counters of an engine."""

from __future__ import annotations

import time
from collections import deque

RATE_WINDOW = 10.0  # seconds


class Metrics:
    """Written by the engine's thread, read by any.

    prompt_tokens: tokens of prompts that the model read. computed_tokens: all tokens that went through it, padding
    included. cached_tokens: prompt tokens that it did not have to read.
    """

    def __init__(self) -> None:
        self.requests = self.failed = 0
        self.prompt_tokens = self.cached_tokens = self.output_tokens = self.computed_tokens = 0
        self.started_at = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque(maxlen=1 << 14)

    def add_output_tokens(self, count: int) -> None:
        if count:
            self.output_tokens += count
            self._recent.append((time.monotonic(), count))

    def snapshot(self) -> dict[str, float]:
        """Every figure by its name."""
        now = time.monotonic()
        rate = sum(count for time, count in list(self._recent) if now - time <= RATE_WINDOW) / RATE_WINDOW
        return {
            "tokens_per_second": rate,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "written_tokens": self.output_tokens,
            "requests": self.requests,
            "failed": self.failed,
            "uptime": now - self.started_at,
        }
