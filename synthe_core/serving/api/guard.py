"""What stands before every handler: who may ask, under which name, from which page; and what every answer carries."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from synthe_core.serving.api.errors import Refusal
from synthe_core.serving.api.metrics import Metrics
from synthe_core.serving.api.settings import Settings

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
POLICY = "default-src 'none'; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
OPEN = re.compile(r"/|/page/[^/]*|/health|/openapi\.json")
"""The paths that need no key: the page, which holds nothing of anybody's, and what tells that the server is there."""


class Door:
    """The outermost layer: counts and logs every request, gives it an id, and answers what fails inside in one line."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, paths: Callable[[Scope], str]) -> None:
        self.app, self.settings, self.metrics, self.paths = app, settings, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun, status = time.monotonic(), 499  # what the log says of those who hung up first

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in {**HEADERS, "Content-Security-Policy": POLICY}.items():
                    headers.setdefault(name, value)
                headers["X-Request-Id"] = uuid.uuid4().hex
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        failed = ""
        try:
            await self.app(scope, receive, answering)
        except Exception as error:  # a defect: whoever asked learns that it is one, the log what it is
            failed = f"  {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if status == 499:
                await Refusal(500, "internal error: this is a defect of synthe").response()(scope, receive, answering)
        finally:
            seconds, path = time.monotonic() - begun, self.paths(scope)
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.labels(method, path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            if not (path in QUIET and status < 400):
                asked = scope["path"][:100].encode("unicode_escape").decode()
                note = scope.get("synthe.note", "")
                self.settings.log(f"{method} {asked}  {status}  {seconds:.2f}s  {note}{failed}".rstrip())


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
QUIET = ("/health", "/metrics", "/api/status", "/", "/page/{name}")
"""What asks again and again, and is not worth a line while it goes well."""


class Guard:
    """Answers to its own names only, and to those that bring a key where one is needed."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.keys = {hashlib.sha256(key.encode()).digest(): f"key {i}" for i, key in enumerate(settings.keys, 1)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refused = self._host(headers.getlist("host")) or self._key(scope, headers.get("authorization", ""))
        await (refused.response() if refused else self.app)(scope, receive, send)

    def _host(self, given: list[str]) -> Refusal | None:
        """A page elsewhere whose name resolves to this machine sends that name."""
        if self.settings.hosts is None or (len(given) == 1 and host_name(given[0]) in self.settings.hosts):
            return None
        return Refusal(421, "this server does not go by that name (--allow-host says which it goes by)")

    def _key(self, scope: Scope, given: str) -> Refusal | None:
        if not self.keys:
            return None
        scheme, _, token = given.partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1")).digest()  # the bytes as they came
        found = [who for key, who in self.keys.items() if hmac.compare_digest(key, digest)]  # all of them, every time
        if found and scheme.lower() == "bearer":
            scope["synthe.who"] = found[0]
            return None
        if OPEN.fullmatch(scope["path"]):
            return None
        message = "the API key is wrong" if given else "an API key is needed: Authorization: Bearer KEY"
        return Refusal(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def host_name(header: str) -> str:
    """`[::1]:6900` -> `::1`, `localhost:6900` -> `localhost`."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]{1,5})?", header.strip())
    return (found[1] or found[2]).lower().rstrip(".") if found else ""
