"""Counters of an engine."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable

RATE_WINDOW = 10.0  # seconds


class Metrics:
    """Figures of all requests, or of one owner's. Written by the engine's thread, read by any.

    prompt_tokens: tokens of prompts that the model read. computed_tokens: all tokens that went through it, padding
    included. cached_tokens: prompt tokens that it did not have to read. drafted_tokens: of speculative decoding, and
    how many of them were accepted.
    """

    def __init__(self) -> None:
        self.requests = self.failed = 0
        self.prompt_tokens = self.cached_tokens = self.output_tokens = self.computed_tokens = 0
        self.drafted_tokens = self.accepted_tokens = 0
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
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "requests": self.requests,
            "failed": self.failed,
            "uptime": now - self.started_at,
        }


class EngineMetrics(Metrics):
    """The figures of all requests, and those of each owner's."""

    def __init__(self) -> None:
        super().__init__()
        self._owned: dict[str, Metrics] = {}
        self._lock = threading.Lock()

    def of(self, owner: str) -> Metrics:
        """The figures of an owner's requests, those of all for the owner ""."""
        if not owner:
            return self
        with self._lock:
            metrics = self._owned.setdefault(owner, Metrics())
        metrics.started_at = self.started_at
        return metrics

    def add(self, owner: str, **counts: int) -> None:
        """Adds to the owner's figures of these names, and to those of all."""
        for metrics in (self, self.of(owner)) if owner else (self,):
            for name, count in counts.items():
                setattr(metrics, name, getattr(metrics, name) + count)

    def add_output_tokens_of(self, owners: Iterable[str]) -> None:
        """Counts a token for each of these owners."""
        counts = Counter(owners)
        self.add_output_tokens(counts.total())
        for owner, count in counts.items():
            if owner:
                self.of(owner).add_output_tokens(count)
