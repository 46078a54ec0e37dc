"""Ratings that other processes have given since this one last looked."""

from __future__ import annotations

import threading

from sqlalchemy import func, select

from synthe_core.swarm.feedback.tables import SCHEMA, ratings
from synthe_core.swarm.store import Store


class RatingsLog:
    """Follows the table of ratings. For any thread."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        store.prepare(SCHEMA)
        self._own: set[str] = set()
        self._count, self._latest = self._size()

    def note(self, answer_id: str) -> None:
        """This process rates an answer, and has learned from it."""
        with self._lock:
            self._own.add(answer_id)

    def has_news(self) -> bool:
        """Whether there are ratings by others since the last call, or some were deleted."""
        count, latest = self._size()
        with self._lock:
            if (count, latest) == (self._count, self._latest):
                return False
            with self._store.read() as connection:
                # with those of the same moment as the last one: clocks are coarse
                query = select(ratings.c.answer).where(ratings.c.time >= self._latest)
                recent = {str(row[0]) for row in connection.execute(query)}
            others, is_less = recent - self._own, count < self._count
            self._own &= recent
            self._count, self._latest = count, latest
            return bool(others) or is_less

    def _size(self) -> tuple[int, float]:
        with self._store.read() as connection:
            row = connection.execute(select(func.count(), func.coalesce(func.max(ratings.c.time), 0.0))).one()
        return int(row[0]), float(row[1])
