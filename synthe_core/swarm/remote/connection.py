"""One POST to a server, whose answer is read piece by piece within limits of time and size."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from urllib.parse import urljoin

from synthe_core.errors import InputError, WorkError
from synthe_core.swarm.remote.addresses import PORTS, Address, is_private
from synthe_core.swarm.spec import RemoteSpec

MAX_REDIRECTS = 3
MAX_BYTES = 4 << 20
"""Of an answer."""
PIECE = 8192


class RemoteError(WorkError):
    """A remote server gave no whole answer. status: of its response; retry_after: seconds that it asks to wait."""

    def __init__(self, message: str, *, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Connection:
    """A POST under way. `close`, from any thread, ends it: whoever reads it gets RemoteError.

    deadline: on time.monotonic, after which nothing is read.
    """

    def __init__(self, spec: RemoteSpec, deadline: float) -> None:
        self._spec, self._deadline = spec, deadline
        self._socket: socket.socket | None = None
        self._closed = False

    def close(self) -> None:
        self._closed = True
        if (connected := self._socket) is not None:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads

    def post(self, address: Address, body: bytes, headers: Mapping[str, str], key: str | None) -> Iterator[bytes]:
        """The bytes of a response of 200, after redirects that keep the request (307, 308).

        A redirect never goes to a private address, unless the spec allows it, nor from https to http, and takes no key
        to another origin.
        """
        first = address.origin
        for _ in range(MAX_REDIRECTS + 1):
            public_only = address.origin != first and not self._spec.private_redirects
            authorization = {"Authorization": f"Bearer {key}"} if key else {}
            response = self._send(address, body, {**headers, **authorization}, public_only)
            if response.status not in (301, 302, 303, 307, 308):
                return self._content(response)
            target = self._redirected(address, response)
            key = key if target.origin == address.origin else None
            address = target
        raise RemoteError(f"{address.host} redirects more than {MAX_REDIRECTS} times")

    def _send(
        self, address: Address, body: bytes, headers: Mapping[str, str], public_only: bool
    ) -> http.client.HTTPResponse:
        if self._closed:
            raise RemoteError("the request was cancelled")
        port = "" if address.port == PORTS[address.scheme] else f":{address.port}"
        host = f"[{address.host}]" if ":" in address.host else address.host
        connection = http.client.HTTPConnection(address.host, address.port)
        try:
            self._socket = connection.sock = self._connect(address, public_only)
            self._limit()
            connection.request("POST", address.path or "/", body, {**headers, "Host": f"{host}{port}"})
            return connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failure(address.host, error) from None

    def _connect(self, address: Address, public_only: bool) -> socket.socket:
        """A socket to the first address that answers. The address that is checked is the one that is connected to:
        a name can have another one a moment later."""
        failure: OSError | None = None
        for family, kind, protocol, _, place in address.resolve():
            if public_only and is_private(str(place[0])):
                raise RemoteError("it redirects to a private address, and remote.private_redirects is false")
            connected = socket.socket(family, kind, protocol)
            try:
                connected.settimeout(max(0.001, min(self._spec.connect_seconds, self._left)))
                connected.connect(place)
                if address.scheme == "https":
                    connected = ssl.create_default_context().wrap_socket(connected, server_hostname=address.host)
                return connected
            except OSError as error:
                connected.close()
                failure = error
        raise failure or OSError("no address")

    def _redirected(self, address: Address, response: http.client.HTTPResponse) -> Address:
        where = response.getheader("Location") or ""
        response.close()
        if response.status not in (307, 308):
            raise RemoteError(f"{address.host} redirects with {response.status}, which loses the request")
        url = f"{address.scheme}://{address.host}:{address.port}{address.path}"
        try:
            target = Address.parse(urljoin(url, where))
        except InputError as error:
            raise RemoteError(f"{address.host} redirects to no URL: {error.message}") from None
        if address.scheme == "https" and target.scheme != "https":
            raise RemoteError(f"{address.host} redirects from https to http")
        return target

    def _content(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        if response.status != 200:
            raise self._refused(response)
        return self._pieces(response)

    def _pieces(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        size = 0
        while True:
            self._limit()
            try:
                piece = response.read1(PIECE)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise self._failure("the server", error) from None
            if not piece:
                return
            size += len(piece)
            if size > MAX_BYTES:
                raise RemoteError(f"the answer has more than {MAX_BYTES >> 20} MiB")
            yield piece

    def _refused(self, response: http.client.HTTPResponse) -> RemoteError:
        wait = response.getheader("Retry-After", "")
        seconds = float(wait) if wait.isdecimal() and len(wait) < 7 else None
        response.close()
        return RemoteError(f"the server answered {response.status}", status=response.status, retry_after=seconds)

    @property
    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _limit(self) -> None:
        """The next read waits no longer than the server may be silent, nor than the deadline."""
        if self._closed:
            raise RemoteError("the request was cancelled")
        if self._left <= 0:
            raise RemoteError("the server took too long")
        if self._socket is not None:
            self._socket.settimeout(min(self._spec.silence_seconds, self._left))

    def _failure(self, host: str, error: Exception) -> RemoteError:
        if self._closed:
            return RemoteError("the request was cancelled")
        if isinstance(error, TimeoutError):
            return RemoteError(f"{host} did not answer in time")
        if isinstance(error, ssl.SSLError):
            return RemoteError(f"{host} has no valid certificate: {error.reason}")
        reason = getattr(error, "strerror", None) or type(error).__name__
        return RemoteError(f"{host} cannot be reached: {reason}")
