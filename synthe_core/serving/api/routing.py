"""Paths and methods that the server does not have: what is said of them, and OPTIONS."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from synthe_core.serving.api.errors import HttpError

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def allowed_methods(methods: Iterable[str]) -> str:
    """The Allow header of a path that takes these."""
    names = {*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    return ", ".join(name for name in METHODS if name in names)


def other_methods(path: str, methods: Iterable[str]) -> Route:
    """The route of a path for all other methods, to come after its own: 200 for OPTIONS, else 405."""
    allowed = allowed_methods(methods)

    async def answer(request: Request) -> Response:
        is_preflight = "access-control-request-method" in request.headers  # CORS would have answered it
        if request.method == "OPTIONS" and not is_preflight:
            return Response(headers={"Allow": allowed})
        message = f"this path does not support that method (it takes {allowed})"
        if is_preflight:
            message = "cross-origin requests are not allowed here"
        error = HttpError(405, message, headers={"Allow": allowed})
        request.scope["synthe.note"] = error.reason
        return error.response()

    return Route(path, answer, methods=list(METHODS))


def no_such_path(path: str, paths: Mapping[str, Iterable[str]]) -> HttpError:
    """404. Below /v1 it names the nearest path, or those that there are."""
    whole = [each for each in paths if "{" not in each]
    if near := _nearest(path, whole):
        return HttpError(404, f"no such path (did you mean {near}?)", code="not_found")
    if not path.startswith("/v1"):
        return HttpError(404, "no such path")
    names = (f"{method} {each}" for each in whole if each.startswith("/v1/") for method in paths[each])
    return HttpError(404, f"no such path (below /v1 there are {', '.join(names)})", code="not_found")


def _nearest(path: str, paths: list[str]) -> str | None:
    """The path that a client means which adds /v1 twice, or never, or misspells the rest."""
    rest = "/" + path.strip("/").lower()
    while rest.startswith("/v1/v1"):
        rest = rest.removeprefix("/v1")
    for each in (rest, f"/v1{rest}", rest.removeprefix("/v1")):
        if each in paths and each != path:
            return each
    below = [each for each in paths if each.startswith("/v1/")]
    return next(iter(difflib.get_close_matches(rest, below, n=1, cutoff=0.75)), None)
