"""What every handler uses: the engine, the settings, the metrics and the request."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import NotFound
from synthe_core.serving.api.errors import HttpError, busy, invalid
from synthe_core.serving.api.metrics import Metrics
from synthe_core.serving.api.settings import Settings

T = TypeVar("T")
B = TypeVar("B", bound=BaseModel)


class ClientDisconnected(Exception):
    """The client has disconnected."""


@dataclass
class Api:
    """The server.

    closing:     set when it begins to shut down.
    last_tokens: the tokens of the last request of each (client, model), for their inspection.
    tails:       the last text of each session that was continued here.
    template_locks: held while a chat template is rendered, one for each model.
    """

    engine: AsyncEngine
    settings: Settings
    metrics: Metrics
    started: float = field(default_factory=time.time)
    closing: bool = False
    last_tokens: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    tails: dict[str, str] = field(default_factory=dict)
    template_locks: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    receiving_bytes: int = 0
    background_count: int = 0

    @property
    def names(self) -> list[str]:
        """Every model name that requests can use: models, and models with an adapter."""
        return [
            name
            for base, served in self.engine.models.items()
            for name in (base, *(f"{base}:{adapter}" for adapter in list(served.adapters)))
        ]

    def served(self, name: str | None) -> LoadedModel:
        """The model of that name, the first for None; raises NotFound."""
        return self.engine.find(name)[0] if name is not None else next(iter(self.engine.models.values()))

    def max_length(self, served: LoadedModel) -> int:
        """The maximum number of tokens of a prompt and its output together."""
        allowed = self.settings.max_prompt + self.settings.max_tokens
        return allowed if served.max_length is None else min(allowed, served.max_length)

    def has_session(self, name: str | None) -> bool:
        """Whether a conversation of this name exists."""
        if name is None:
            return False
        try:
            self.engine.sessions.get(name)
        except NotFound:
            return False
        return True

    @asynccontextmanager
    async def background_slot(self) -> AsyncIterator[None]:
        """Limits concurrent work outside the engine. Raises 429 if there is too much."""
        if self.background_count >= self.settings.max_background:
            raise busy("too many concurrent requests of this kind", 1)
        self.background_count += 1
        try:
            yield
        finally:
            self.background_count -= 1

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Runs `work` in a thread, so that other requests continue."""
        async with self.background_slot():
            return await asyncio.to_thread(work)


@dataclass
class Call:
    """An HTTP request. client: the label of its API key. note: adds a text to its log line."""

    request: Request
    client: str = ""

    @property
    def sender(self) -> str:
        """Who shares the engine with others: the key, or without keys the address."""
        return self.client or (self.request.client.host if self.request.client is not None else "")

    def note(self, text: str) -> None:
        self.request.scope["synthe.note"] = text

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled if the client disconnects. The body must have been read."""
        task, disconnected = asyncio.ensure_future(work), asyncio.ensure_future(self._wait_for_disconnect())
        try:
            await asyncio.wait((task, disconnected), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnected
            return task.result()
        finally:
            for each in (task, disconnected):
                each.cancel()
            await asyncio.gather(task, disconnected, return_exceptions=True)

    async def _wait_for_disconnect(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


Handler = Callable[[Api, Call, Any], Coroutine[Any, Any, Response]]


async def read_body(api: Api, request: Request, model: type[B]) -> B:
    """The validated body. Raises HttpError if it is too large, too slow, not JSON or invalid."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a cross-origin page cannot send without a preflight request
        raise HttpError(415, f"the content type must be application/json, not {kind[:80] or 'missing'}")
    content = await _read(api, request)
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise invalid(error, model) from None


async def _read(api: Api, request: Request) -> bytes:
    settings, content = api.settings, bytearray()
    too_large = HttpError(413, f"the body is larger than {settings.max_body:,} bytes", headers={"Connection": "close"})
    content_length = request.headers.get("content-length", "0")
    if not content_length.isdecimal() or int(content_length) > settings.max_body:
        raise too_large
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for chunk in request.stream():
                content += chunk
                api.receiving_bytes += len(chunk)
                if len(content) > settings.max_body:
                    raise too_large
                if api.receiving_bytes > 16 * settings.max_body:
                    raise busy("too many bytes are being received at a time", 1)
    except TimeoutError:
        raise HttpError(408, "the body did not arrive in time", headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise ClientDisconnected from None
    finally:
        api.receiving_bytes -= len(content)
    return bytes(content)
