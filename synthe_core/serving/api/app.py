"""The server as an ASGI application over an engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from synthe_core.errors import SyntheError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.serving.api.context import Api, Call, Gone, read_body
from synthe_core.serving.api.endpoints import ENDPOINTS, Endpoint, document
from synthe_core.serving.api.errors import Refusal, refusal
from synthe_core.serving.api.guard import Door, Guard
from synthe_core.serving.api.metrics import Metrics
from synthe_core.serving.api.settings import Settings

PAGE = Path(__file__).parent.parent / "page"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
HUNG_UP = 499


class App:
    """Call it as ASGI. `api.closing` makes it refuse what is new."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self.api = Api(engine, settings, Metrics(engine.status))
        methods: dict[str, list[Route]] = {}
        for endpoint in ENDPOINTS:
            route = Route(endpoint.path, _answering(self.api, endpoint), methods=[endpoint.method])
            methods.setdefault(endpoint.path, []).append(route)
        routes = [route for found in methods.values() for route in found]
        self._paths = {*methods, "/", "/openapi.json", "/page/{name}"}
        routes += [*_page(), Route("/openapi.json", _fixed(JSONResponse(document())))]
        handlers: dict[Any, Any] = {HTTPException: _http_error, Exception: _defect}
        inner: ASGIApp = Guard(Starlette(routes=routes, exception_handlers=handlers), settings)
        if settings.origins:
            inner = CORSMiddleware(
                inner,
                allow_origins=settings.origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["Authorization", "Content-Type"],
                expose_headers=["X-Request-Id", "Retry-After"],
            )
        self._app = Door(inner, settings, self.api.metrics, self._path)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)

    def _path(self, scope: Scope) -> str:
        """The path as the table has it, so that metrics know a few names and no more."""
        asked = scope["path"]
        if asked in self._paths:
            return asked
        route = getattr(scope.get("route"), "path", None)
        return route if route in self._paths else "other"


def _answering(api: Api, endpoint: Endpoint) -> Callable[[Request], Any]:
    """The handler, with its body read and what it raises turned into an answer."""

    async def answer(request: Request) -> Response:
        call = Call(request, request.scope.get("synthe.who", ""))
        try:
            body = await read_body(api, request, endpoint.body) if endpoint.body else None
            return await endpoint.handler(api, call, body)
        except Refusal as refused:
            return refused.response()
        except SyntheError as error:
            return refusal(error).response()
        except Gone:
            return Response(status_code=HUNG_UP)

    return answer


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What the router refuses, in the shape of all errors."""
    message = {404: "there is nothing at this path", 405: "this path does not take that method"}
    return Refusal(
        error.status_code, message.get(error.status_code, str(error.detail)), headers=error.headers
    ).response()


async def _defect(request: Request, error: Exception) -> Response:
    """What nobody foresaw; the door tells the log of it."""
    return Refusal(500, "internal error: this is a defect of synthe").response()


def _page() -> list[Route]:
    """The dashboard: its files are read once, and asked for by exact name."""
    files = {path.name: path for path in sorted(PAGE.glob("*")) if path.suffix in TYPES}
    found = {name: _file(path) for name, path in files.items()}
    routes = [Route(f"/page/{name}", _fixed(answer), name="page") for name, answer in found.items()]
    if "index.html" in found:
        routes.append(Route("/", _fixed(found["index.html"])))
    return routes


def _file(path: Path) -> Response:
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return Response(path.read_bytes(), headers=headers, media_type=TYPES[path.suffix])


def _fixed(answer: Response) -> Callable[[Request], Any]:
    async def give(request: Request) -> Response:
        return answer

    return give
