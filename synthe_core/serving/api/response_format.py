"""HTTP responses: a stream of events, or one JSON object at the end."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api import bodies
from synthe_core.serving.api.completion_job import CompletionJob, OutputDelta, Usage
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.json_parts import to_json

DONE = "[DONE]"
MAX_INLINE_ITEMS = 1000  # of an answer that is written in the event loop


class ResponseFormat(ABC):
    """The format of one kind of response: a chunk of a stream, and a complete choice."""

    prefix: str
    whole_kind: str
    chunk_kind: str

    def __init__(self, body: bodies.GenerationBody, served: LoadedModel) -> None:
        self.body, self.served = body, served
        self.head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": f"fp_{served.digest[:12]}",
        }

    @abstractmethod
    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a choice, before any output."""

    @abstractmethod
    def chunk(self, delta: OutputDelta) -> dict[str, Any]:
        """A delta as a choice of a chunk."""

    @abstractmethod
    def whole(self, deltas: list[OutputDelta]) -> dict[str, Any]:
        """A complete choice, from all its deltas."""

    async def respond(self, call: Call, job: CompletionJob) -> Response:
        """Streams the output, or waits until it is complete."""
        if self.body.stream:
            await job.begin()
            return EventStream(self._events(call, job), job)
        return await self._gathered(call, job)

    async def _gathered(self, call: Call, job: CompletionJob) -> Response:
        deltas: list[list[OutputDelta]] = [[] for _ in job.requests]
        with job:
            await job.begin()
            async for delta in job.deltas():
                if delta.failure is not None:
                    raise delta.failure
                if not self.needs_entries:
                    delta.entries = []
                deltas[delta.index].append(delta)
        self._end(call, job)
        size = sum(len(delta.entries) for each in deltas for delta in each)
        return await json_response(lambda: self._complete(deltas, job), size)

    def _complete(self, deltas: list[list[OutputDelta]], job: CompletionJob) -> dict[str, Any]:
        choices = [self.whole(each) for each in deltas]
        return {**self.head, "object": self.whole_kind, "choices": choices, "usage": job.usage().json()}

    @property
    def needs_entries(self) -> bool:
        """Whether the answer has anything of each token; a long one takes much memory then."""
        logprobs = getattr(self.body, "logprobs", None)
        return bool(self.body.confidence) or (logprobs is not None and logprobs is not False)

    async def _events(self, call: Call, job: CompletionJob) -> AsyncIterator[dict[str, str]]:
        for index in range(len(job.requests)):
            if (opening := self.opening(index)) is not None:
                yield self._event(opening, job.usage_so_far())
        failure = None
        async for delta in job.deltas():
            if delta.failure is not None:
                failure = delta.failure
                yield {"data": json.dumps(failure.body)}
                break
            yield self._event(self._extended(self.chunk(delta), delta), job.usage_so_far())
        else:
            if self.body.with_usage:
                yield self._event(None, job.usage())
        self._end(call, job)
        if failure is not None:
            call.note(failure.reason)
        yield {"data": DONE}

    def _extended(self, choice: dict[str, Any], delta: OutputDelta) -> dict[str, Any]:
        if self.body.confidence and delta.confidence is not None:
            choice["synthe"] = {"confidence": delta.confidence}
        return choice

    def _event(self, choice: dict[str, Any] | None, usage: Usage) -> dict[str, str]:
        """A chunk of one choice, or of none, which is the last and has the usage."""
        chunk = {**self.head, "object": self.chunk_kind, "choices": [] if choice is None else [choice]}
        if self.body.with_usage:
            is_due = choice is None or self.body.with_running_usage
            chunk["usage"] = usage.json() if is_due else None
        if choice is not None and "synthe" in choice:
            chunk["synthe"] = choice.pop("synthe")
        return {"data": json.dumps(chunk, ensure_ascii=False, allow_nan=False)}

    def _end(self, call: Call, job: CompletionJob) -> None:
        usage = job.usage()
        job.record_last_output()
        call.note(f"{self.body.model}  {usage}")


async def json_response(build: Callable[[], Any], size: int) -> Response:
    """What `build` returns, as JSON; of `size` items, many of which are built and written in a thread."""
    if size <= MAX_INLINE_ITEMS:
        return JSONResponse(build())
    content = await asyncio.to_thread(lambda: to_json(build()))
    return Response(content, media_type="application/json")


class Job(Protocol):
    """What a stream is of."""

    api: Api

    def cancel(self) -> None:
        """Ends the work, if it goes on."""


class EventStream(EventSourceResponse):
    """A stream of events. When it ends, for any reason, its job is cancelled."""

    def __init__(self, events: AsyncIterator[dict[str, str]], job: Job) -> None:
        super().__init__(events, send_timeout=job.api.settings.send_timeout, sep="\n")
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            pass  # a client that does not read counts as disconnected
        finally:
            self.job.cancel()


def confidences(deltas: list[OutputDelta]) -> list[float]:
    """The confidence of every output token."""
    return [entry.confidence for delta in deltas for entry in delta.entries if entry.confidence is not None]
