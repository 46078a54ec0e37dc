"""Handlers of a swarm's state, and of what people say of its answers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from synthe_core.serving.api import bodies
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.swarm_chat import user_of
from synthe_core.swarm.confidence import success_of

if TYPE_CHECKING:  # its database needs an extra
    from synthe_core.swarm.team import Swarm


ID = re.compile("[0-9]{1,18}")


async def swarm_status(api: Api, call: Call, body: None) -> Response:
    """The specialists with their success by domain, and the pathways between them."""
    swarm = swarm_of(api)
    from synthe_core.swarm.status import pathways_of, status_of

    def facts() -> dict[str, Any]:
        values = status_of(swarm.folder, swarm.record)
        del values["base"]  # a path of the server
        if values["learning"]["now"] is not None:
            values["learning"]["now"].pop("pid", None)
        for each in values["specialists"]:
            for name in ("adapter", "model", "documents"):
                each.pop(name, None)
        return {**values, "pathways": pathways_of(swarm.record), "role": call.role}

    return JSONResponse(await api.in_thread(facts))


async def feedback(api: Api, call: Call, body: bodies.Feedback) -> Response:
    """Learns how good an answer was. Only who got an answer may rate it: its id is known to nobody else, and where
    there are API keys, the key must be the same."""
    swarm, user = swarm_of(api), user_of(call, body.user)
    if body.correction is not None and (body.score or 0) > 0:
        raise HttpError(400, "score: an answer that is corrected is not good", param="score")
    is_rated = body.score is not None or body.correction is not None
    if is_rated == (body.signal is not None):
        raise HttpError(400, "give a score or a correction, or else a signal", param="score")

    def record() -> float | None:
        if body.signal is not None:
            observed = swarm.feedback.observe(body.answer_id, body.signal, user)
            return None if observed is None else observed.score
        if body.correction is not None:
            swarm.feedback.correct(body.answer_id, body.correction, user, body.right)
            return 0.0
        assert body.score is not None
        return swarm.feedback.rate(body.answer_id, success_of(body.score), user, body.right).score

    return JSONResponse({"answer_id": body.answer_id, "success": await api.in_thread(record)})


def limit_of(call: Call, most: int) -> int:
    """The query's `limit`, `most` by default; raises 400 for what is none."""
    given = call.request.query_params.get("limit", str(most))
    if not (given.isascii() and given.isdecimal()) or not 1 <= int(given[:9]) <= most:
        raise HttpError(400, f"limit: a number from 1 to {most}", param="limit")
    return int(given)


def id_of(call: Call, name: str) -> int:
    """The id of a row in the path; raises 400 for what is none."""
    return number_of(name, call.request.path_params[name])


def number_of(name: str, given: str) -> int:
    """The number that an id is; raises 400 for what is none."""
    if not ID.fullmatch(given):
        raise HttpError(400, f"{name}: a number of at most 18 digits", param=name)
    return int(given)


def swarm_of(api: Api) -> Swarm:
    """The swarm that is served; raises 404 without one."""
    if api.swarm is None:
        raise HttpError(404, "no swarm is served here: start the server with --swarm TEAM", code="not_found")
    return api.swarm
