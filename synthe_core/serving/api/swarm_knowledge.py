"""Handlers of what a swarm knows: facts, and everything that is stored of a user.

A key sees and changes what belongs to its own users. Without keys, or where keys share everything, a name proves
nothing: then only an admin names users.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from synthe_core.errors import InputError
from synthe_core.serving.api import bodies, responses
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.swarm_chat import user_of
from synthe_core.serving.api.swarm_state import id_of, limit_of, swarm_of

if TYPE_CHECKING:  # its database needs an extra
    from synthe_core.swarm.knowledge.fact import Fact
    from synthe_core.swarm.knowledge.knowledge import Knowledge

MAX_FACTS, MAX_QUERY, MAX_USER = 200, 2000, 1000
"""Facts of a response, and characters of its query and of a user's name."""
MAX_IN_MEMORY = 1 << 20
"""Bytes of a user's data; more are in a temporary file while they are sent, and the database is not read meanwhile."""


async def facts(api: Api, call: Call, body: None) -> Response:
    """The facts of a user and of everybody that belong to a query, the best first; without one the newest.

    Everybody's that are not trusted are for reviewers.
    """
    swarm, given = swarm_of(api), call.request.query_params
    user, query = _user(call, given.get("user", "")), given.get("query", "")
    if len(query) > MAX_QUERY:
        raise HttpError(400, f"query: at most {MAX_QUERY} characters", param="query")
    history = given.get("history", "false")
    if history not in ("true", "false"):
        raise HttpError(400, "history: expected true or false", param="history")
    limit, sees_all = limit_of(call, MAX_FACTS), call.may("reviewer")

    def find() -> list[dict[str, Any]]:
        every = swarm.recollection.find(user, query, history=history == "true", limit=limit)
        return [_fact(each) for each in every if each.user or each.trusted or sees_all]

    return JSONResponse({"object": "list", "data": await api.in_thread(find)})


async def change_fact(api: Api, call: Call, body: bodies.FactChange) -> Response:
    """Corrects, trusts or ends a fact of the user; everybody's are for admins, and trust is for reviewers."""
    swarm, fact = swarm_of(api), id_of(call, "fact")
    user = _user(call, body.user or "")
    if body.trusted:
        call.require("reviewer")

    def change() -> dict[str, Any]:
        knowledge = swarm.recollection.knowledge
        whose = _owner(knowledge, call, user, fact)
        if body.object is not None:
            corrected = knowledge.correct(whose, fact, body.object, by_operator=whose == "")
            return _fact(corrected.fact)
        if body.ended:
            return _fact(knowledge.facts.end(whose, fact))
        return _fact(knowledge.facts.trust(whose, fact).fact)

    return JSONResponse(await api.in_thread(change))


async def user_data(api: Api, call: Call, body: None) -> Response:
    """Facts with their history, conversations, answers, ratings and pairs of a user."""
    swarm, user = swarm_of(api), _named_user(call)

    def read() -> IO[bytes]:
        spool = tempfile.SpooledTemporaryFile(MAX_IN_MEMORY)  # noqa: SIM115, it is closed when it has been sent
        for piece in swarm.recollection.knowledge.export_lines(user, named=False):  # a name has the digest of the key
            spool.write(piece.encode())
        spool.seek(0)
        return spool

    return StreamingResponse(_sent(await api.in_thread(read)), media_type="application/json")


def _sent(spool: IO[bytes]) -> Iterator[bytes]:
    with spool:
        yield from iter(lambda: spool.read(MAX_IN_MEMORY), b"")


async def delete_user_data(api: Api, call: Call, body: None) -> Response:
    """Deletes it all. Adapters that were trained with it are not changed."""
    swarm, user = swarm_of(api), _named_user(call)

    def delete() -> dict[str, int]:
        counts = swarm.recollection.knowledge.forget(user)
        swarm.record.reload()
        swarm.router.reload()
        return counts

    return JSONResponse({"deleted": await api.in_thread(delete)})


def _user(call: Call, name: str) -> str:
    """Whose facts; raises 400 for an overlong name, and 403 where a name proves nothing."""
    if len(name) > MAX_USER:
        raise HttpError(400, f"user: at most {MAX_USER} characters", param="user")
    if name and not call.owner:
        call.require("admin")
    return user_of(call, name)


def _named_user(call: Call) -> str:
    user = _user(call, call.request.query_params.get("user", ""))
    if not user:  # whose rows are everybody's
        raise HttpError(400, "user: name whose data", param="user")
    return user


def _owner(knowledge: Knowledge, call: Call, user: str, fact: int) -> str:
    """Whose fact it is: the user's, or for an admin everybody's. InputError if it is neither's."""
    if user:
        try:
            return knowledge.facts.get(user, fact).user
        except InputError:
            if not call.may("admin"):
                raise
    call.require("admin")
    return knowledge.facts.get("", fact).user


def _fact(fact: Fact) -> dict[str, Any]:
    values = {name: getattr(fact, name) for name in responses.SwarmFact.model_fields if name != "shared"}
    return {**values, "shared": fact.user == ""}
