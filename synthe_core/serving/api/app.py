"""The server as an ASGI application."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from synthe_core.errors import SyntheError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.serving.api.context import SENDER, Api, Call, ClientDisconnected, read_body
from synthe_core.serving.api.endpoints import ENDPOINTS, Endpoint, document
from synthe_core.serving.api.errors import HttpError, http_error
from synthe_core.serving.api.metrics import Metrics
from synthe_core.serving.api.middleware import AccessMiddleware, RequestMiddleware
from synthe_core.serving.api.routing import no_such_path, other_methods
from synthe_core.serving.api.settings import Settings

if TYPE_CHECKING:
    from synthe_core.swarm.team import Swarm

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
CLIENT_CLOSED = 499


class App:
    """An ASGI application. While `api.closing` is set, it rejects new requests."""

    def __init__(self, engine: AsyncEngine, settings: Settings, swarm: Swarm | None = None) -> None:
        self.api = Api(engine, settings, Metrics(engine.status), swarm)
        methods: dict[str, list[Route]] = {}
        for endpoint in ENDPOINTS:
            route = Route(endpoint.path, _handler(self.api, endpoint), methods=[endpoint.method])
            methods.setdefault(endpoint.path, []).append(route)
        routes = [route for of_path in methods.values() for route in of_path]
        self._paths = {*methods, "/", "/openapi.json", "/page/{name}"}
        taken = {
            path: [method for route in of_path for method in route.methods or ()] for path, of_path in methods.items()
        }
        routes += [other_methods(path, names) for path, names in taken.items()]
        routes += [*_page(), Route("/openapi.json", _fixed(JSONResponse(document())))]
        handlers: dict[Any, Any] = {HTTPException: _http_error, Exception: _defect}
        inner: ASGIApp = AccessMiddleware(Starlette(routes=routes, exception_handlers=handlers), settings)
        if settings.origins:
            inner = CORSMiddleware(
                inner,
                allow_origins=settings.origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],  # those that the request for permission names
                expose_headers=["X-Request-Id", "X-Synthe-Note", "Retry-After"],
            )
        self._app = RequestMiddleware(inner, settings, self.api.metrics, self._path)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """A slash at the end of a path means nothing."""
        if scope["type"] == "http" and len(path := scope["path"]) > 1 and path.endswith("/"):
            scope = {**scope, "path": path.rstrip("/") or "/"}
        await self._app(scope, receive, send)

    def _path(self, scope: Scope) -> str:
        """The path as in the table of endpoints, so that metrics have few labels."""
        path: str = scope["path"]
        if path in self._paths:
            return path
        route = getattr(scope.get("route"), "path", None)
        return route if route in self._paths else "other"


def _handler(api: Api, endpoint: Endpoint) -> Callable[[Request], Any]:
    """An endpoint's handler, with its body validated and its errors turned into responses."""

    async def answer(request: Request) -> Response:
        call = Call(request, *(request.scope.get(f"synthe.{name}", "") for name in ("client", "owner", "sees")))
        call.role = request.scope.get("synthe.role", "user")
        SENDER.set(call.sender)
        try:
            call.require(endpoint.role)
            body = await read_body(api, request, endpoint.body) if endpoint.body else None
            work = endpoint.handler(api, call, body)
            response = await (call.while_connected(work) if endpoint.cancellable else work)
            response.headers.update(call.headers)
            return response
        except (HttpError, SyntheError) as error:
            answer = error if isinstance(error, HttpError) else http_error(error)
            call.note(answer.reason)
            return answer.response()
        except ClientDisconnected:
            return Response(status_code=CLIENT_CLOSED)

    return answer


async def _http_error(request: Request, error: HTTPException) -> Response:
    """Errors of the router, in the format of all errors."""
    if error.status_code == 404:
        answer = no_such_path(request.url.path, {each.path: [each.method] for each in ENDPOINTS})
    else:
        message = {405: "this path does not support that method"}.get(error.status_code, str(error.detail))
        answer = HttpError(error.status_code, message, headers=error.headers)
    request.scope["synthe.note"] = answer.reason
    return answer.response()


async def _defect(request: Request, error: Exception) -> Response:
    """Unexpected errors, which the middleware logs."""
    return HttpError(500, "internal error: this is a defect of synthe").response()


def _page() -> list[Route]:
    """The routes of the dashboard. Its files are read once, and served by exact name."""
    files = {path.name: path for path in sorted(PAGE.glob("*")) if path.suffix in TYPES}
    responses = {name: _file(path) for name, path in files.items()}
    routes = [Route(f"/page/{name}", _fixed(answer), name="page") for name, answer in responses.items()]
    if "index.html" in responses:
        routes.append(Route("/", _fixed(responses["index.html"])))
    return routes


def _file(path: Path) -> Response:
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return Response(path.read_bytes(), headers=headers, media_type=TYPES[path.suffix])


def _fixed(answer: Response) -> Callable[[Request], Any]:
    async def give(request: Request) -> Response:
        return answer

    return give
