"""Handlers of what a swarm learns: pairs and their review, versions of adapters, proposed specialists."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from synthe_core.errors import InputError
from synthe_core.serving.api import bodies, responses
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.swarm_state import id_of, limit_of, number_of, swarm_of

MAX_PAIRS, MAX_LINES = 1000, 1000
"""Pairs, and lines of the ledger, of a response."""


async def history(api: Api, call: Call, body: None) -> Response:
    """The newest lines of the ledger: what was learned, refused and rolled back, with digests and figures."""
    swarm, name, limit = swarm_of(api), call.request.query_params.get("specialist"), limit_of(call, MAX_LINES)
    from synthe_core.swarm.status import history as entries

    return _list(await api.in_thread(lambda: entries(swarm.folder, name)[-limit:]))


async def versions(api: Api, call: Call, body: None) -> Response:
    """The versions of adapters that were learned, with the figures of their promotion."""
    swarm = swarm_of(api)
    from synthe_core.swarm.status import versions as entries

    return _list(await api.in_thread(lambda: entries(swarm.folder)))


async def pairs(api: Api, call: Call, body: None) -> Response:
    """The pairs of all users, oldest first; `after` is the id of the last one of the page before."""
    swarm, given = swarm_of(api), call.request.query_params
    from synthe_core.swarm.feedback.pairs import parse_state

    state = None if "state" not in given else parse_state(given["state"])
    limit, after = limit_of(call, MAX_PAIRS), number_of("after", given.get("after", "0"))

    def read() -> list[dict[str, Any]]:
        every = swarm.feedback.pairs(state, specialist=given.get("specialist"), limit=limit, after=after)
        return [_pair(each) for each in every]

    return _list(await api.in_thread(read))


async def review(api: Api, call: Call, body: bodies.Review) -> Response:
    """Approves or rejects a pair. The reviewer is the key."""
    swarm, pair = swarm_of(api), id_of(call, "pair")
    from synthe_core.swarm.feedback.pairs import PairState

    def decide() -> dict[str, Any]:
        return _pair(swarm.feedback.review(pair, PairState(body.state), call.client or "operator", chosen=body.chosen))

    return JSONResponse(await api.in_thread(decide))


async def learn(api: Api, call: Call, body: None) -> Response:
    """Starts the process that learns, without waiting until the server is idle."""
    swarm = swarm_of(api)
    from synthe_core.swarm.feedback.pairs import Pairs
    from synthe_core.swarm.learning.background import due_specialists

    due = await api.in_thread(lambda: list(due_specialists(swarm.folder, Pairs(swarm.store))))
    if not due:
        raise InputError(
            f"no specialist has {swarm.spec.learning.min_pairs} approved pairs to learn",
            "review some: GET /api/swarm/pairs",
        )
    swarm.learning_wanted.set()
    return JSONResponse({"specialists": due})


async def rollback(api: Api, call: Call, body: bodies.Rollback) -> Response:
    """Makes the version before the current one current. Answers under way end with the current one."""
    swarm = swarm_of(api)
    from synthe_core.swarm.learning.learn import roll_back

    def change() -> dict[str, Any]:
        values = roll_back(swarm.folder, body.specialist)
        swarm.follow_adapters()
        return values

    return JSONResponse(await api.in_thread(change))


async def proposals(api: Api, call: Call, body: None) -> Response:
    """The specialists that failing requests call for, and that nobody has decided on."""
    swarm = swarm_of(api)
    from synthe_core.swarm.spawning.proposals import Proposals, ProposalState

    every = await api.in_thread(lambda: Proposals(swarm.folder, swarm.store).entries(ProposalState.NEW))
    return _list([_fields(responses.SwarmProposal, each) for each in every])


async def decide(api: Api, call: Call, body: bodies.Decision) -> Response:
    """Makes a proposed specialist, which takes part at once, or rejects it."""
    swarm, name = swarm_of(api), call.request.path_params["name"]
    from synthe_core.swarm.spawning.proposals import Proposals

    def change() -> dict[str, Any]:
        proposed = Proposals(swarm.folder, swarm.store)
        if body.state == "approved":
            proposed.approve(name)
            swarm.follow_specialists()
        else:
            proposed.reject(name)
        (made,) = [each for each in proposed.entries() if each.name == name and each.state == body.state][-1:]
        return _fields(responses.SwarmProposal, made)

    return JSONResponse(await api.in_thread(change))


def _pair(pair: Any) -> dict[str, Any]:
    return _fields(responses.SwarmPair, pair)


def _fields(model: Any, value: Any) -> dict[str, Any]:
    """The fields of a response's schema, of an object that has them and more."""
    return {name: getattr(value, name) for name in model.model_fields}


def _list(values: list[dict[str, Any]]) -> Response:
    return JSONResponse({"object": "list", "data": values})
