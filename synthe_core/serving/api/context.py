"""What every handler uses: the engine, the settings, the metrics and the request."""

from __future__ import annotations

import asyncio
import threading
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import NotFound
from synthe_core.serving.api import content as contents
from synthe_core.serving.api.errors import HttpError, busy
from synthe_core.serving.api.json_body import MAX_VALUES, parse_body
from synthe_core.serving.api.metrics import Metrics
from synthe_core.serving.api.response_store import ResponseStore
from synthe_core.serving.api.settings import ROLES, Role, Settings
from synthe_core.serving.api.turns import Turns

if TYPE_CHECKING:
    from synthe_core.swarm.team import Swarm

T = TypeVar("T")
B = TypeVar("B", bound=BaseModel)

MAX_INLINE_BODY = 16_384  # bytes that are parsed in the event loop; more in a thread
PARSERS = 2
"""Bodies that are parsed at a time; the others wait."""
MAX_COMPILING = 256
"""Requests whose schema is compiled, or waits for it."""
MAX_TOKENIZING = 1024
"""Long texts that are tokenized, or wait for it."""
MAX_RUNNING_TOOLS = 256
"""Calls of the server's own tools that run, or wait for it."""
SENDER: ContextVar[str] = ContextVar("sender", default="")
"""The `Call.sender` of the request that is handled."""


class ClientDisconnected(Exception):
    """The client has disconnected."""


class Interruption:
    """Ends work in other threads that nobody waits for any more: from the end of its `with` block on, `check`
    raises."""

    def __init__(self) -> None:
        self._ended = threading.Event()

    def __enter__(self) -> Interruption:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def check(self) -> None:
        if self._ended.is_set():
            raise ClientDisconnected


@dataclass
class Api:
    """The server.

    swarm:       the swarm that is served, whose models are in the engine; None without one.
    closing:     set when it begins to shut down.
    last_tokens: the tokens of the last request of each (owner, model), for their inspection.
    tails:       the last text of each session that was continued here, by owner and name.
    responses:   of /v1/responses, which others continue.
    compiling:   the turns of clients at compiling schemas.
    template_locks: held while a chat template is rendered, one for each model.
    """

    engine: AsyncEngine
    settings: Settings
    metrics: Metrics
    swarm: Swarm | None = None
    started: float = field(default_factory=time.time)
    closing: bool = False
    last_tokens: dict[tuple[str, str], array[int]] = field(default_factory=dict)
    tails: dict[tuple[str, str], str] = field(default_factory=dict)
    responses: ResponseStore = field(default_factory=ResponseStore)
    template_locks: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    receiving_bytes: int = 0
    background_count: int = 0
    parsers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(PARSERS, "bodies"))

    def __post_init__(self) -> None:
        places = self.settings.max_background  # some are left for what takes no turns
        self.compiling = Turns(max(1, places // 2), MAX_COMPILING)
        self.tokenizing = Turns(max(1, places // 4), MAX_TOKENIZING)
        self.running_tools = Turns(max(1, places // 2), MAX_RUNNING_TOOLS)
        self._background = ThreadPoolExecutor(self.settings.max_background, "requests")
        self._background_lock = threading.Lock()

    @property
    def max_values(self) -> int:
        """The maximum number of values of a body: a prompt may come as token ids, each of them one."""
        return max(MAX_VALUES, 2 * self.settings.max_prompt)

    def served(self, name: str | None, owner: str) -> LoadedModel:
        """The owner's model of that name, the first for None; raises NotFound."""
        return self.engine.find(name, owner)[0] if name is not None else next(iter(self.engine.models.values()))

    def max_length(self, served: LoadedModel) -> int:
        """The maximum number of tokens of a prompt and its output together."""
        allowed = self.settings.max_prompt + self.settings.max_tokens
        return allowed if served.max_length is None else min(allowed, served.max_length)

    def has_session(self, name: str | None, owner: str) -> bool:
        """Whether the owner has a conversation of this name."""
        if name is None:
            return False
        try:
            self.engine.sessions.get(name, owner)
        except NotFound:
            return False
        return True

    async def tokenize(self, work: Callable[[], T]) -> T:
        """Runs `work` on a long text in a thread, in the turn of the request's sender. Raises 429 if too much waits."""
        return await self.tokenizing.run(SENDER.get(), partial(self.in_thread, work))

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Runs `work` in a thread, so that other requests continue. Raises 429 if there is too much such work.

        Its place is taken until the work itself ends, though nobody may wait for it any more.
        """
        with self._background_lock:
            if self.background_count >= self.settings.max_background:
                raise busy("too many concurrent requests of this kind", 1)
            self.background_count += 1
        future = self._background.submit(work)
        future.add_done_callback(self._work_ended)
        return await asyncio.wrap_future(future)

    def _work_ended(self, future: Future[Any]) -> None:
        with self._background_lock:
            self.background_count -= 1

    def close(self) -> None:
        """Shuts the threads down."""
        for threads in (self.parsers, self._background):
            threads.shutdown(wait=False, cancel_futures=True)


@dataclass
class Call:
    """An HTTP request.

    client:  the digest of its API key.
    owner:   whose it is, "" where all share everything. sees: whose figures it may see, "" for those of all.
    role:    what the key may do.
    headers: what the response gets beside its own.
    """

    request: Request
    client: str = ""
    owner: str = ""
    sees: str = ""
    role: Role = "user"
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def sender(self) -> str:
        """Who shares the engine with others: the key, or without keys the address."""
        return self.client or (self.request.client.host if self.request.client is not None else "")

    def may(self, role: Role) -> bool:
        """Whether the key may do what `role` may."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def require(self, role: Role) -> None:
        """Raises 403 for a key that may not do what `role` may."""
        if not self.may(role):
            message = f"this needs an API key with the role {role}, and this one has {self.role}"
            raise HttpError(403, message, code="insufficient_role")

    def note(self, text: str) -> None:
        """Adds a text to the request's log line."""
        self.request.scope["synthe.note"] = text

    def add_notice(self, text: str) -> None:
        """Adds a header that says what was done otherwise than requested."""
        self.headers["X-Synthe-Note"] = text

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
    compression = contents.compression(request.headers)
    content = bytearray()
    try:
        await _read(api, request, content)
        whole = await contents.plain(bytes(content), compression, api.settings.max_body)
        parse = partial(parse_body, whole, model, api.max_values)
        if len(whole) <= MAX_INLINE_BODY:
            return parse()
        return await asyncio.get_running_loop().run_in_executor(api.parsers, parse)
    finally:
        api.receiving_bytes -= len(content)


async def _read(api: Api, request: Request, content: bytearray) -> None:
    """Adds the body to `content`, and its size to `api.receiving_bytes`."""
    settings = api.settings
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
