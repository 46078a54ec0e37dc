"""What is served and how it goes: models, health, metrics, status, reports, sessions and adapters."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from synthe_core.errors import InputError, closest
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.introspection.report import Report, examine_tokens, lines
from synthe_core.serving.api import bodies, prompts
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.errors import Refusal

MOST_EXAMINED = 2048
"""Tokens that a report is made of: it holds every layer's figures at each of them."""


async def models(api: Api, call: Call, body: None) -> Response:
    return JSONResponse({"object": "list", "data": [_model(api, name) for name in api.names]})


async def model(api: Api, call: Call, body: None) -> Response:
    name = call.request.path_params["model"]
    api.served(name)
    return JSONResponse(_model(api, name))


def _model(api: Api, name: str) -> dict[str, Any]:
    served = api.served(name)
    base, colon, _ = name.partition(":")
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "synthe",
        "parent": base if colon else None,
        "max_model_len": api.longest(served),
        "synthe": {
            "parameters": served.model.parameter_count(),
            "state_bytes_per_sequence": served.state_bytes(api.longest(served)),
            "vocab": served.model.vocab,
            "digest": served.digest,
            "chat_template": served.tokenizer.chat_template is not None,
        },
    }


async def health(api: Api, call: Call, body: None) -> Response:
    if api.closing:
        raise Refusal(503, "the server is shutting down")
    return JSONResponse({"status": "ok"})


async def metrics(api: Api, call: Call, body: None) -> Response:
    return Response(api.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def status(api: Api, call: Call, body: None) -> Response:
    settings = api.settings
    limits = {
        "max_prompt": settings.max_prompt,
        "max_tokens": settings.max_tokens,
        "max_n": settings.max_n,
        "max_body": settings.max_body,
    }
    return JSONResponse({**api.engine.status(), "models": api.names, "limits": limits})


async def introspect(api: Api, call: Call, body: bodies.Introspect) -> Response:
    """What every layer did with a text, or with the last request of that model (and of that key)."""
    served = api.served(body.model)
    if body.text is not None:
        tokens = (await prompts.completion(api, served, body.text)).tokens
    else:
        tokens = api.last.get((call.who, body.model), ())
        if not tokens:
            raise Refusal(404, f"nothing has been asked of {body.model} yet", code="not_found")
    read = tokens[:MOST_EXAMINED]

    def examine(served: LoadedModel) -> Report:
        return examine_tokens(served.model, served.tokenizer, list(read), name=body.model)

    report = await call.while_connected(
        api.in_thread(lambda: api.engine.with_model(body.model, read, examine).result())
    )
    found: dict[str, Any] = {
        "left_out": len(tokens) - len(read),
        "tokens": [],
        "series": [],
        "figures": [],
        "reads": [],
    }
    kinds = {"token": "tokens", "series": "series", "figure": "figures", "reads": "reads"}
    for line in await asyncio.to_thread(lambda: list(lines(report))):
        kind = line.pop("event")
        if kind == "model":
            found["model"] = line | {"name": body.model}
        elif kind in kinds:
            found[kinds[kind]].append(line)
    return JSONResponse(found)


async def sessions(api: Api, call: Call, body: None) -> Response:
    return JSONResponse({"object": "list", "data": [_session(info) for info in api.engine.sessions.list()]})


async def session(api: Api, call: Call, body: None) -> Response:
    return JSONResponse(_session(api.engine.sessions.get(call.request.path_params["id"])))


async def fork_session(api: Api, call: Call, body: bodies.Fork) -> Response:
    asked = call.request.path_params["id"]
    info = await api.in_thread(lambda: api.engine.sessions.fork(asked, body.to))
    if asked in api.tails:
        api.tails[body.to] = api.tails[asked]
    return JSONResponse(_session(info))


async def delete_session(api: Api, call: Call, body: None) -> Response:
    asked = call.request.path_params["id"]
    await api.in_thread(lambda: api.engine.sessions.delete(asked))
    api.tails.pop(asked, None)
    return JSONResponse({"id": asked, "object": "session.deleted", "deleted": True})


def _session(info: Any) -> dict[str, Any]:
    return {"object": "session", **{key: getattr(info, key) for key in SESSION_FIELDS}}


SESSION_FIELDS = ("id", "model", "tokens", "bytes", "created", "used", "saved")


async def load_adapter(api: Api, call: Call, body: bodies.AdapterLoad) -> Response:
    """Loads an entry of the folders that the command line allows; a request names it and never a path."""
    allowed = await asyncio.to_thread(lambda: entries(api.settings.adapters))
    if not api.settings.adapters:
        raise Refusal(403, "this server loads no adapters: it was started without --adapters DIR")
    if body.path not in allowed:
        near = closest(body.path, allowed)
        hint = f"did you mean '{near}'?" if near else f"there are: {', '.join(sorted(allowed)) or 'none'}"
        raise Refusal(404, f"no such adapter ({hint})", param="path", code="not_found")
    if body.model not in api.engine.models:
        api.served(body.model)  # says which models there are
        raise InputError(f"{body.model} is an adapter itself", "name its base")
    path = allowed[body.path]
    await api.in_thread(lambda: api.engine.load_adapter(body.model, body.name, path))
    return JSONResponse(_model(api, f"{body.model}:{body.name}"))


def entries(folders: tuple[Path, ...]) -> dict[str, Path]:
    """What may be loaded, by name; of two with one name, the first."""
    return {path.name: path for folder in reversed(folders) for path in folder.iterdir() if path.is_dir()}


async def unload_adapter(api: Api, call: Call, body: None) -> Response:
    base, name = (call.request.path_params[key] for key in ("model", "name"))
    api.served(f"{base}:{name}")
    await api.in_thread(lambda: api.engine.unload_adapter(base, name))
    return JSONResponse({"id": f"{base}:{name}", "object": "model", "deleted": True})
