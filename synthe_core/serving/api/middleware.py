"""Middleware before every handler: access by host name and API key, response headers, the log and metrics."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.metrics import Metrics
from synthe_core.serving.api.routing import METHODS
from synthe_core.serving.api.settings import Role, Settings

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
POLICY = "default-src 'none'; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
OPEN = re.compile(r"/|/page/[^/]*|/health|/openapi\.json")
"""Paths that need no key: the page, which contains no data, the health check and the OpenAPI document."""


class RequestMiddleware:
    """The outermost layer: counts and logs every request, adds an id and headers, and reports unexpected errors."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, paths: Callable[[Scope], str]) -> None:
        self.app, self.settings, self.metrics, self.paths = app, settings, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun, status = time.monotonic(), 499  # logged if the client disconnects first

        async def send_response(message: Message) -> None:
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
            await self.app(scope, receive, send_response)
        except Exception as error:  # a defect: the client gets a general message, the log the error
            failed = f"  {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if status == 499:
                await HttpError(500, "internal error: this is a defect of synthe").response()(
                    scope, receive, send_response
                )
        finally:
            seconds, path = time.monotonic() - begun, self.paths(scope)
            method = scope["method"] if scope["method"] in METHODS else "other"
            owner = scope.get("synthe.owner", "")
            self.metrics.add(owner, "http_requests", method, path, str(status))
            self.metrics.observe(owner, "http_request", path, seconds=seconds)
            if not (path in UNLOGGED and status < 400):
                path_text = scope["path"][:100].encode("unicode_escape").decode()
                note = scope.get("synthe.note", "")
                self.settings.log(f"{method} {path_text}  {status}  {seconds:.2f}s  {note}{failed}".rstrip())


UNLOGGED = ("/health", "/metrics", "/api/status", "/api/swarm", "/", "/page/{name}")
"""Polled paths, which are logged only if they fail."""


class AccessMiddleware:
    """Rejects requests with another host name or without a valid key."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        keys = (*settings.keys, *settings.reviewer_keys, *settings.admin_keys)
        self.keys = {hashlib.sha256(key.encode()).digest(): digest_of(key) for key in keys}
        self.roles: dict[str, Role] = {digest_of(key): "reviewer" for key in settings.reviewer_keys}
        self.roles |= {digest_of(key): "admin" for key in settings.admin_keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refused = self._host(scope, headers.getlist("host")) or self._key(scope, headers.get("authorization", ""))
        if refused:
            scope["synthe.note"] = refused.reason
        await (refused.response() if refused else self.app)(scope, receive, send)

    def _host(self, scope: Scope, names: list[str]) -> HttpError | None:
        """Rejects names of other hosts: a page whose own name resolves to this machine sends that name. HTTP/1.0, which
        no browser speaks, need not name one."""
        if self.settings.hosts is None or (len(names) == 1 and host_name(names[0]) in self.settings.hosts):
            return None
        if not names and scope.get("http_version") == "1.0":
            return None
        return HttpError(421, "unknown host name (allow it with --allow-host)")

    def _key(self, scope: Scope, header: str) -> HttpError | None:
        if not self.keys:
            scope["synthe.role"] = self.settings.keyless_role
            return None
        scheme, _, token = header.partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1")).digest()  # the bytes as they came
        matches = [client for key, client in self.keys.items() if hmac.compare_digest(key, digest)]  # constant time
        if matches and scheme.lower() == "bearer":
            scope["synthe.client"] = matches[0]
            scope["synthe.owner"] = "" if self.settings.shared else matches[0]
            scope["synthe.role"] = role = self.roles.get(matches[0], "user")
            scope["synthe.sees"] = "" if role == "admin" else scope["synthe.owner"]
            return None
        if OPEN.fullmatch(scope["path"]) or scope["method"] == "OPTIONS":  # which shows no more than the document
            return None
        message = "the API key is invalid" if header else "an API key is required: Authorization: Bearer KEY"
        return HttpError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def digest_of(key: str) -> str:
    """What an API key is known by, and what it owns is named by."""
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def host_name(header: str) -> str:
    """`[::1]:6900` -> `::1`, `localhost:6900` -> `localhost`."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]{1,5})?", header.strip())
    return (match[1] or match[2]).lower().rstrip(".") if match else ""
