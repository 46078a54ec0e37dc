"""What a server counts about itself."""

from __future__ import annotations

import time
from collections import deque

SECONDS = 10.0  # that a rate is taken over


class Figures:
    """Counted by the engine's thread, read by any."""

    def __init__(self) -> None:
        self.requests = self.failed = 0
        self.prompt_tokens = self.cached_tokens = self.written_tokens = 0
        self.began = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque(maxlen=1 << 14)

    def wrote(self, tokens: int) -> None:
        if tokens:
            self.written_tokens += tokens
            self._recent.append((time.monotonic(), tokens))

    def told(self) -> dict[str, float]:
        """All of it by name; prompt_tokens are those that were read, and cached_tokens those that need not be."""
        now = time.monotonic()
        rate = sum(count for at, count in list(self._recent) if now - at <= SECONDS) / SECONDS
        return {
            "tokens_per_second": rate,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "written_tokens": self.written_tokens,
            "requests": self.requests,
            "failed": self.failed,
            "uptime": now - self.began,
        }
