"""Reading messages for facts while nobody waits for an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable

from synthe_core.errors import SyntheError
from synthe_core.swarm.extraction.by_model import read_messages
from synthe_core.swarm.json_writer import JsonWriter
from synthe_core.swarm.knowledge.knowledge import Knowledge

PAUSE = 0.2  # seconds between two looks whether the engine is idle, or after a refusal


class BackgroundReader:
    """A thread that reads the messages of users with a model, one at a time, whenever `is_idle` says so.

    `notify` wakes it after a new message; `close` ends it after the message that it reads. What it has not read is read
    when the swarm is opened again.
    """

    def __init__(self, knowledge: Knowledge, write: JsonWriter, is_idle: Callable[[], bool]) -> None:
        self._knowledge, self._write, self._is_idle = knowledge, write, is_idle
        self._news, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._news.set()
        self._thread.start()

    def notify(self) -> None:
        """There may be a new message."""
        self._news.set()

    def close(self) -> None:
        """Ends the thread and waits for it."""
        self._stop.set()
        self._news.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._news.wait()
            self._news.clear()
            while not self._stop.is_set() and self._knowledge.conversations.unread(1):
                if not self._is_idle():
                    self._stop.wait(PAUSE)
                    continue
                try:
                    read_messages(self._knowledge, self._write, limit=1)
                except SyntheError:  # no room in the engine, or a full disk: the message stays unread
                    self._stop.wait(PAUSE)
