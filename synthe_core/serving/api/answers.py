"""From deltas to HTTP: a stream of events as they come, or one JSON object at the end."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api import bodies
from synthe_core.serving.api.context import Call
from synthe_core.serving.api.writing import Delta, Work

DONE = "[DONE]"


class Answer(ABC):
    """How one kind of request is answered: the shape of a chunk, and of a choice that is whole."""

    prefix: str
    whole_kind: str
    chunk_kind: str

    def __init__(self, body: bodies.Writing, served: LoadedModel) -> None:
        self.body, self.served = body, served
        self.head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": f"fp_{served.digest[:12]}",
        }

    @abstractmethod
    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk of a choice before anything is written."""

    @abstractmethod
    def chunk(self, delta: Delta) -> dict[str, Any]:
        """A choice of a chunk."""

    @abstractmethod
    def whole(self, deltas: list[Delta]) -> dict[str, Any]:
        """A choice, of all its deltas."""

    async def respond(self, call: Call, work: Work) -> Response:
        """Streams, or waits until all is written."""
        if self.body.stream:
            await work.begin()
            return Streamed(self._events(call, work), work)
        return await call.while_connected(self._gathered(call, work))

    async def _gathered(self, call: Call, work: Work) -> Response:
        found: list[list[Delta]] = [[] for _ in work.requests]
        with work:
            await work.begin()
            async for delta in work.deltas():
                if delta.failure is not None:
                    raise delta.failure
                found[delta.index].append(delta)
        self._end(call, work)
        choices = [self.whole(deltas) for deltas in found]
        return JSONResponse({**self.head, "object": self.whole_kind, "choices": choices, "usage": work.usage().json()})

    async def _events(self, call: Call, work: Work) -> AsyncIterator[dict[str, str]]:
        for index in range(len(work.requests)):
            if (opening := self.opening(index)) is not None:
                yield self._event(opening)
        async for delta in work.deltas():
            if delta.failure is not None:
                yield {"data": json.dumps(delta.failure.body)}
                break
            yield self._event(self._extended(self.chunk(delta), delta))
        else:
            if self.body.with_usage:
                yield self._event(None, work)
        self._end(call, work)
        yield {"data": DONE}

    def _extended(self, choice: dict[str, Any], delta: Delta) -> dict[str, Any]:
        if self.body.confidence and delta.confidence is not None:
            choice["synthe"] = {"confidence": delta.confidence}
        return choice

    def _event(self, choice: dict[str, Any] | None, ended: Work | None = None) -> dict[str, str]:
        chunk = {**self.head, "object": self.chunk_kind, "choices": [] if choice is None else [choice]}
        if self.body.with_usage:
            chunk["usage"] = ended.usage().json() if ended else None
        if choice is not None and "synthe" in choice:
            chunk["synthe"] = choice.pop("synthe")
        return {"data": json.dumps(chunk, ensure_ascii=False, allow_nan=False)}

    def _end(self, call: Call, work: Work) -> None:
        usage = work.usage()
        work.remember(call.who)
        call.note(f"{self.body.model}  {usage.prompt} ({usage.cached} cached) + {usage.written} tokens")


class Streamed(EventSourceResponse):
    """A stream of events, at whose end, however it comes, what is still being written is given up."""

    def __init__(self, events: AsyncIterator[dict[str, str]], work: Work) -> None:
        super().__init__(events, send_timeout=work.api.settings.send_timeout, sep="\n")
        self.work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            pass  # a client that does not read is one that has hung up
        finally:
            self.work.cancel()


def confidences(deltas: list[Delta]) -> list[float]:
    """Of every token that was written."""
    return [entry.confidence for delta in deltas for entry in delta.entries if entry.confidence is not None]
