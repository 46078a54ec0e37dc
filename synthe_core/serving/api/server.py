"""The application on a socket: uvicorn in a thread, with timeouts for slow clients and a graceful shutdown."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    import resource
except ImportError:  # not everywhere
    resource = None  # type: ignore[assignment]

from synthe_core.errors import InputError, WorkError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.serving.api.app import App
from synthe_core.serving.api.settings import Settings

if TYPE_CHECKING:
    from synthe_core.swarm.team import Swarm

BACKLOG = 2048
THREADS = 32  # for blocking work; most of them wait for the engine
SHUTDOWN_TIMEOUT = 5.0
"""Seconds for responses to reach their clients after the engine has ended."""


class Server:
    """Serves at `host`:`port` while it is entered; port 0 takes a free one.

    Raises InputError if the address is not available.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        settings: Settings,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        swarm: Swarm | None = None,
    ) -> None:
        self.engine = engine
        self.app = App(engine, settings, swarm)
        self._socket = listening(host, port)
        self.host, self.port = host, self._socket.getsockname()[1]
        config = uvicorn.Config(
            self.app,
            loop="asyncio",
            http=protocol_with_timeout(settings.header_timeout),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.CRITICAL,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=max(5, int(settings.header_timeout)),
            timeout_graceful_shutdown=int(SHUTDOWN_TIMEOUT),
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise WorkError("the server did not start")
            time.sleep(0.005)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop(0.0)

    def stop(self, grace: float) -> None:
        """Rejects new requests, gives running ones `grace` seconds to finish, ends the others, and closes.

        The engine is closed too, and has saved its sessions."""
        self.app.api.closing = True
        self.engine.close(grace)
        self._server.should_exit = True
        self._thread.join(2 * SHUTDOWN_TIMEOUT)
        self.app.api.close()

    def _serve(self) -> None:
        asyncio.run(self._answer())

    async def _answer(self) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "background"))
        await self._server.serve(sockets=[self._socket])


def listening(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError with a hint if the address is not available."""
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise InputError(f"no such address: {host}", "--host 127.0.0.1 is this machine only") from None
    family, kind, protocol, _, address = addresses[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.set_inheritable(False)
        return sock
    except OSError as error:
        sock.close()
        raise _listen_error(error, host, port) from None


def _listen_error(error: OSError, host: str, port: int) -> InputError:
    if error.errno == errno.EADDRINUSE:
        return InputError(f"port {port} is in use", "is another server running? --port 0 takes a free one")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"no permission for port {port}", "ports below 1024 are reserved; use --port 6900")
    if error.errno == errno.EADDRNOTAVAIL:
        return InputError(f"{host} is not an address of this machine", "--host 0.0.0.0 uses all of them")
    return InputError(f"cannot listen at {host}:{port}: {error.strerror}")


def allow_connections(limit: int = 65_536) -> None:
    """Raises the limit of open files: every connection is one."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server at `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def protocol_with_timeout(timeout: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol with a timeout in seconds.

    It closes the connection if the start of a request does not arrive in time, or if the client reads nothing of a
    response for as long."""

    class TimeoutProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _unread = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(timeout, self._late)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_timer()  # the request has arrived; its body has a timeout of its own
            elif self._timer is None and not self.transport.is_closing():
                self._timer = self.loop.call_later(timeout, self._late)

        def timeout_keep_alive_handler(self) -> None:
            unread, self._unread = self._unread, self.transport.get_write_buffer_size()
            if self._unread and self._unread == unread:
                self.transport.abort()
            elif self._unread:
                handler = self.timeout_keep_alive_handler
                self.timeout_keep_alive_task = self.loop.call_later(timeout, handler)
            else:
                super().timeout_keep_alive_handler()

        def _late(self) -> None:
            self._timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.abort()

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return TimeoutProtocol
