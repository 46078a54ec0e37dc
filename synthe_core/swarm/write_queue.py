"""The order in which threads and processes write to one database.

SQLite's own waiting looks ten times a second whether the lock is free: a process that writes without a pause would
leave another no chance. Here who waits holds the turn, which whoever writes next must wait for.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows: threads queue here, processes with SQLite
    fcntl = None  # type: ignore[assignment]

ENDINGS = ("-turn", "-writer")
FIRST_PAUSE, PAUSE = 0.0002, 0.002  # seconds between two looks


class WriteQueue:
    """Locks on two files beside the database. A killed process holds none."""

    def __init__(self, database: Path) -> None:
        self._lock = threading.Lock()
        names = [database.with_name(database.name + ending) for ending in ENDINGS] if fcntl else []
        self._files = [os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644) for name in names]
        self._closed = weakref.finalize(self, _close, self._files)

    @contextmanager
    def hold(self, timeout: float) -> Iterator[None]:
        """Within the block nobody else writes. TimeoutError if another process does for `timeout` seconds."""
        with self._lock:
            if not self._files:
                yield
                return
            end = time.monotonic() + timeout
            turn, writer = self._files
            _acquire(turn, end)
            try:
                _acquire(writer, end)
            finally:
                fcntl.flock(turn, fcntl.LOCK_UN)
            try:
                yield
            finally:
                fcntl.flock(writer, fcntl.LOCK_UN)


def _acquire(file: int, end: float) -> None:
    pause = FIRST_PAUSE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError from None
        time.sleep(pause)
        pause = min(PAUSE, 2 * pause)


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
