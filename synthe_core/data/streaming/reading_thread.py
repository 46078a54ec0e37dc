"""A thread that reads ahead, for which nothing waits that need not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
CLOSING_SECONDS = 1.0
"""The longest that `close` waits for a function to end."""


class ReadingThread:
    """Calls functions one after another in a daemon thread: the program ends even while one waits for a network."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._pending: list[Future[Any]] = []
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def submit(self, function: Callable[P, T], *args: P.args, **keys: P.kwargs) -> Future[T]:
        """The future result of a call, which begins after those that were submitted before."""
        future: Future[T] = Future()
        self._pending = [each for each in self._pending if not each.done()] + [future]
        self._calls.put((future, lambda: function(*args, **keys)))
        if self._thread.ident is None:
            self._thread.start()
        return future

    def close(self) -> None:
        """Cancels the calls that have not begun, and waits a moment for the one that has."""
        for future in self._pending:
            future.cancel()
        self._calls.put(None)
        if self._thread.ident is not None:
            self._thread.join(CLOSING_SECONDS)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del call, future, function  # a shard is not held while the next call is awaited
