"""Handlers of models, health, metrics, status, inspection, sessions and adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json
from starlette.responses import JSONResponse, Response

from synthe_core.errors import InputError, closest
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.model_registry import owned_name
from synthe_core.introspection.observe import Observation, observe
from synthe_core.introspection.report import Report, lines, report_of
from synthe_core.serving.api import bodies, prompts
from synthe_core.serving.api.context import Api, Call, Interruption
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.swarm_chat import SWARM, is_for_swarm
from synthe_core.swarm.models import BASE

MOST_EXAMINED = 512
"""Maximum number of tokens of a report, which has the signals of every layer for each. One pass reads them, and others
wait for it: it is no longer than a pass over prompts (`SchedulerConfig.max_prefill_tokens`)."""


async def models(api: Api, call: Call, body: None) -> Response:
    data = [_any_model(api, name, call.owner) for name in _names(api, call.owner)]
    return JSONResponse({"object": "list", "data": data})


async def model(api: Api, call: Call, body: None) -> Response:
    name = call.request.path_params["model"]
    return JSONResponse(_any_model(api, name, call.owner))


def _any_model(api: Api, name: str, owner: str) -> dict[str, Any]:
    return _swarm_model(api, name) if is_for_swarm(api, name) else _model(api, name, owner)


def _names(api: Api, owner: str) -> list[str]:
    """What requests can name."""
    own = [] if api.swarm is None else [SWARM, *api.swarm.spec.specialists]
    return [*own, *api.engine.registry.names(owner)]


def _swarm_model(api: Api, name: str) -> dict[str, Any]:
    """A specialist as a model of its own, or the swarm, which has the facts of its base."""
    assert api.swarm is not None
    engine_name = BASE if name == SWARM else api.swarm.models[name]
    values = _model(api, engine_name, "")
    return {**values, "id": name, "parent": BASE, "synthe": {**values["synthe"], "swarm": True}}


def _model(api: Api, name: str, owner: str) -> dict[str, Any]:
    served = api.served(name, owner)
    base, colon, adapter = name.partition(":")
    adapter = adapter if adapter in served.adapters else owned_name(adapter, owner)
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "synthe",
        "parent": base if colon else None,
        "max_model_len": api.max_length(served),
        "synthe": {
            "parameters": served.parameter_count(adapter),
            "weights": served.weights,
            "speculation": None if served.speculation is None else served.speculation.summary,
            "memory": "; ".join(filter(None, [served.memory_summary, served.measured_speed])) or None,
            "state_bytes_per_sequence": served.state_bytes(api.max_length(served)),
            "vocab": served.model.vocab,
            "digest": served.digest,
            "chat_template": served.tokenizer.chat_template is not None,
            "sampling": dict(served.defaults.sampling),
            "max_tokens": served.defaults.max_tokens,
        },
    }


async def health(api: Api, call: Call, body: None) -> Response:
    if api.closing:
        raise HttpError(503, "the server is shutting down")
    return JSONResponse({"status": "ok"})


async def metrics(api: Api, call: Call, body: None) -> Response:
    """The figures of the key's own requests, or of all requests where it may see them."""
    return Response(api.metrics.text(call.sees), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def status(api: Api, call: Call, body: None) -> Response:
    """The figures of the key's own requests, or of all requests where it may see them; its own sessions and models."""
    settings = api.settings
    limits = {
        "max_prompt": settings.max_prompt,
        "max_tokens": settings.max_tokens,
        "max_n": settings.max_n,
        "max_body": settings.max_body,
    }
    own = {"sessions": len(api.engine.sessions.list(call.owner)), "models": _names(api, call.owner)}
    figures = {**api.engine.status(call.sees), "scope": "key" if call.sees else "all"}
    return JSONResponse({**figures, **own, "limits": limits})


async def introspect(api: Api, call: Call, body: bodies.Introspect) -> Response:
    """The signals of every layer on a text, or on the last request of the model (with the same key)."""
    served = api.served(body.model, call.owner)
    if body.text is not None:
        tokens = (await prompts.completion(api, served, body.text)).tokens
    else:
        tokens = tuple(api.last_tokens.get((call.owner, body.model), ()))
        if not tokens:
            raise HttpError(404, f"{body.model} has had no request yet", code="not_found")
    read = list(tokens[:MOST_EXAMINED])
    with Interruption() as interruption:
        check = interruption.check

        def read_text(model: LoadedModel) -> Observation:
            return observe(model.model, read, check=check)

        observed = await asyncio.wrap_future(api.engine.with_model(body.model, read, read_text, call.owner))

        def answer() -> bytes:
            with served.context.activate():
                report = report_of(served.model, served.tokenizer, observed, name=body.model, check=check)
            return to_json(_fields(report, len(tokens) - len(read), check=check), inf_nan_mode="null")

        return Response(await api.in_thread(answer), media_type="application/json")


def _fields(report: Report, left_out: int, *, check: Callable[[], None]) -> dict[str, Any]:
    """A report as an object. `check` is called before every line of it."""
    fields: dict[str, Any] = {"left_out": left_out, "tokens": [], "series": [], "figures": [], "reads": []}
    kinds = {"token": "tokens", "series": "series", "figure": "figures", "reads": "reads"}
    for line in lines(report):
        check()
        kind = line.pop("event")
        if kind == "model":
            fields["model"] = line | {"name": report.name}
        elif kind in kinds:
            fields[kinds[kind]].append(line)
    return fields


async def sessions(api: Api, call: Call, body: None) -> Response:
    return JSONResponse({"object": "list", "data": [_session(info) for info in api.engine.sessions.list(call.owner)]})


async def session(api: Api, call: Call, body: None) -> Response:
    return JSONResponse(_session(api.engine.sessions.get(call.request.path_params["id"], call.owner)))


async def fork_session(api: Api, call: Call, body: bodies.Fork) -> Response:
    session_id = call.request.path_params["id"]
    info = await api.in_thread(lambda: api.engine.sessions.fork(session_id, body.to, call.owner))
    if (tail := api.tails.get((call.owner, session_id))) is not None:
        api.tails[call.owner, body.to] = tail
    return JSONResponse(_session(info))


async def delete_session(api: Api, call: Call, body: None) -> Response:
    session_id = call.request.path_params["id"]
    await api.in_thread(lambda: api.engine.sessions.delete(session_id, call.owner))
    api.tails.pop((call.owner, session_id), None)
    return JSONResponse({"id": session_id, "object": "session.deleted", "deleted": True})


def _session(info: Any) -> dict[str, Any]:
    return {"object": "session", **{key: getattr(info, key) for key in SESSION_FIELDS}}


SESSION_FIELDS = ("id", "model", "tokens", "bytes", "created", "used", "saved")


async def load_adapter(api: Api, call: Call, body: bodies.AdapterLoad) -> Response:
    """Loads an adapter from the folders of --adapters. A request gives its name, never a path."""
    allowed = await asyncio.to_thread(lambda: entries(api.settings.adapters))
    if not api.settings.adapters:
        raise HttpError(403, "loading adapters is disabled: start the server with --adapters DIR")
    if body.path not in allowed:
        near = closest(body.path, allowed)
        hint = f"did you mean '{near}'?" if near else f"available: {', '.join(sorted(allowed)) or 'none'}"
        raise HttpError(404, f"no such adapter ({hint})", param="path", code="not_found")
    if body.model not in api.engine.models:
        api.served(body.model, call.owner)  # says which models there are
        raise InputError(f"{body.model} is an adapter itself", "name its base")
    path = allowed[body.path]
    most = api.settings.max_adapters
    await api.in_thread(lambda: api.engine.load_adapter(body.model, body.name, path, call.owner, most))
    return JSONResponse(_model(api, f"{body.model}:{body.name}", call.owner))


def entries(folders: tuple[Path, ...]) -> dict[str, Path]:
    """The adapters that can be loaded, by name. If two have the same name, the first counts."""
    return {path.name: path for folder in reversed(folders) for path in folder.iterdir() if path.is_dir()}


async def unload_adapter(api: Api, call: Call, body: None) -> Response:
    base, name = (call.request.path_params[key] for key in ("model", "name"))
    if api.swarm is not None and not call.owner and name in api.swarm.running.adapters:
        raise HttpError(403, f"{base}:{name} is a specialist of the swarm: synthe swarm remove")
    await api.in_thread(lambda: api.engine.unload_adapter(base, name, call.owner))
    return JSONResponse({"id": f"{base}:{name}", "object": "model", "deleted": True})
