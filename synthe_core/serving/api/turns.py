"""Turns at work that takes long: a client that has much of it waits for itself, and others hardly for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from synthe_core.serving.api.errors import busy

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. A caller that is cancelled waits for its end all the same, so that what it holds meanwhile
    is held as long as the work runs."""
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    finally:
        await asyncio.wait((running,))
        _ = running.cancelled() or running.exception()  # if nobody waits, nobody asks for it


class Turns:
    """`at_once` pieces of work run at a time, one of each client; at most `most` run or wait, half of them of one
    client. For one event loop."""

    def __init__(self, at_once: int, most: int) -> None:
        self._places, self._most = asyncio.Semaphore(at_once), most
        self._locks: dict[str, asyncio.Lock] = {}
        self._counts: Counter[str] = Counter()

    async def run(self, client: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `work`, in the client's turn. Raises 429 if too much waits.

        Work that has begun keeps its turn until it ends, though nobody may wait for it any more; work that has not is
        dropped then.
        """
        if self._counts[client] >= max(1, self._most // 2) or self._counts.total() >= self._most:
            raise busy("too many concurrent requests of this kind", 1)
        self._counts[client] += 1
        try:
            async with self._locks.setdefault(client, asyncio.Lock()), self._places:
                return await to_the_end(work())
        finally:
            self._counts[client] -= 1
            if not self._counts[client]:
                del self._counts[client], self._locks[client]
