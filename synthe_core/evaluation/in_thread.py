"""Turning a blocking call that reports progress into a generator of events, by running it in a thread."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from synthe_core.events import Event

T = TypeVar("T")


class _Ended(Generic[T]):
    def __init__(self, value: T | None = None, error: BaseException | None = None) -> None:
        self.value, self.error = value, error


def in_thread(work: Callable[[Callable[[Event], None]], T], stop: threading.Event) -> Generator[Event, None, T]:
    """Runs `work(report)` and yields the events that it reports. Its return value or error is the generator's.

    Its output to stdout and stderr is dropped. If the generator is closed early, `stop` is set, which `work` must
    check, and the thread is joined.
    """
    reports: queue.Queue[Event | _Ended[T]] = queue.Queue()

    def run() -> None:
        with _silent():
            try:
                reports.put(_Ended(work(reports.put)))
            except BaseException as error:
                reports.put(_Ended(error=error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ended = False
    try:
        while True:
            item = reports.get()
            if isinstance(item, _Ended):
                ended = True
                if item.error is not None:
                    raise item.error
                return item.value  # type: ignore[return-value]
            yield item
    finally:
        if not ended:
            stop.set()
        thread.join()


class _Filter:
    """A stream that drops what the thread that created it writes."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _silent() -> Generator[None]:
    """Drops the output of this thread: libraries print progress bars, and the core never prints."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Filter(before[0]), _Filter(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
