"""An engine job: one HTTP request as requests to the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from synthe_core.errors import SyntheError
from synthe_core.inference.outputs import Finished, Output, PrefillFinished
from synthe_core.inference.request import Request
from synthe_core.serving.api.context import Api
from synthe_core.serving.api.errors import HttpError, http_error, without_folders

MAX_UNINTERRUPTED = 256  # events that are taken before other requests get their turn
STATUS = {"refused": 400, "error": 500}


def failure_of(event: Finished) -> HttpError | None:
    """The error of a request that the engine has ended; None if it has an answer."""
    status = STATUS.get(event.reason)
    if status is None:
        return None
    message = without_folders(event.message or "the request failed")
    # What the log gets ends before the details, which may quote the request.
    return HttpError(status, message, code=event.code, reason=message.partition(":")[0])


@dataclass
class EngineJob:
    """The engine requests of one HTTP request, with their events in one queue.

    As a context manager it cancels the unfinished requests at its end.
    """

    api: Api
    requests: Sequence[Request]

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self._handles: list[Any] = []
        self._ended: set[int] = set()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()
        self._cancelled = False

    async def begin(self) -> Self:
        """Submits all requests. On an error none remains submitted, and the error is raised as HttpError."""
        if self.api.closing:
            raise HttpError(503, "the server is shutting down", headers={"Retry-After": "5"})
        try:
            for index, request in enumerate(self.requests):
                submit = partial(self._submit, index)
                if not request.is_constrained:
                    submit()
                else:
                    compiled = partial(self.api.in_thread, submit)
                    await self.api.compiling.run(request.client, compiled)
        except BaseException as error:
            self.cancel()
            raise http_error(error) if isinstance(error, SyntheError) else error from None
        return self

    def _submit(self, index: int) -> None:
        """Submits one request, from any thread. It is cancelled at once if the job was cancelled."""
        handle = self.api.engine.submit(self.requests[index], partial(self._deliver, index))
        self._handles.append(handle)
        if self._cancelled:
            handle.cancel()

    def _deliver(self, index: int, event: Output) -> None:
        """Puts an event of the engine's thread into the queue."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        self._cancelled = True
        for index, handle in enumerate(self._handles):
            if index not in self._ended:
                handle.cancel()
                request = handle.request
                self.api.metrics.add(request.owner, "finished", request.model, "cancelled")
        self._handles = []

    async def events(self) -> AsyncIterator[tuple[int, Output]]:
        """The events of all requests, each with the request's index, until all have ended."""
        metrics, taken = self.api.metrics, 0
        while len(self._ended) < len(self.requests):
            index, event = await self._events.get()
            taken += 1
            if taken % MAX_UNINTERRUPTED == 0:  # a queue that has events does not give way by itself
                await asyncio.sleep(0)
            owner, model = self.requests[index].owner, self.requests[index].model
            if isinstance(event, PrefillFinished):
                metrics.add(owner, "prompt_tokens", model, by=event.num_prompt_tokens)
                metrics.add(owner, "cached_tokens", model, by=event.num_cached_tokens)
            elif isinstance(event, Finished):
                self._ended.add(index)
                metrics.add(owner, "finished", model, event.reason)
            yield index, event
