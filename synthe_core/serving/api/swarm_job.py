"""An answer of a swarm as events of the event loop. The swarm works in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from synthe_core.errors import SyntheError
from synthe_core.serving.api.context import Api
from synthe_core.serving.api.errors import HttpError, http_error
from synthe_core.swarm.events import SwarmEvent
from synthe_core.swarm.request import SwarmRequest

if TYPE_CHECKING:  # its database needs an extra
    from synthe_core.swarm.team import Swarm

THREADS = 256
"""Answers of the swarm at a time; the engine queues what they ask of it."""
WORKERS = ThreadPoolExecutor(THREADS, "swarm")


class SwarmJob:
    """One answer. As a context manager it cancels the answer at its end, if it goes on."""

    def __init__(self, api: Api, swarm: Swarm, request: SwarmRequest) -> None:
        self.api, self._swarm, self._request = api, swarm, request
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[SwarmEvent | BaseException | None] = asyncio.Queue()

    def __enter__(self) -> SwarmJob:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def begin(self) -> None:
        """Starts the answer. Raises HttpError if the server is shutting down."""
        if self.api.closing:
            raise HttpError(503, "the server is shutting down", headers={"Retry-After": "5"})
        WORKERS.submit(self._run)

    def cancel(self) -> None:
        """Ends the answer, if it goes on; it is not recorded then."""
        self._request.cancellation.cancel()

    async def events(self) -> AsyncIterator[SwarmEvent]:
        """The events until the end. An error of the swarm is raised as HttpError."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, SyntheError):
                raise http_error(event) from None
            if isinstance(event, BaseException):
                raise event
            yield event

    def _run(self) -> None:
        events = self._swarm.answer(self._request)
        try:
            for event in events:
                self._put(event)
            self._put(None)
        except BaseException as error:  # it belongs to whoever waits
            self._put(error)
        finally:
            events.close()

    def _put(self, event: SwarmEvent | BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
