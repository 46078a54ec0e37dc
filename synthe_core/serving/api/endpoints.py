"""The table of endpoints, from which the routes and the OpenAPI document are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import synthe_core
from synthe_core.serving.api import bodies, chat, completions, replies, state, tokens
from synthe_core.serving.api.bodies import SESSION
from synthe_core.serving.api.context import Handler
from synthe_core.serving.api.guard import OPEN

Method = Literal["GET", "POST", "DELETE"]
REFERENCE = "#/components/schemas/{model}"


@dataclass(frozen=True)
class Endpoint:
    """body: schema of the request, None if it has none. reply: schema of the response, or its content type.
    query: names of query parameters."""

    method: Method
    path: str
    handler: Handler
    summary: str
    reply: type[BaseModel] | str
    body: type[BaseModel] | None = None
    query: tuple[str, ...] = ()
    streams: bool = False
    patterns: dict[str, str] = field(default_factory=dict)


ENDPOINTS = [
    Endpoint("GET", "/v1/models", state.models, "List the models.", replies.Models),
    Endpoint("GET", "/v1/models/{model}", state.model, "Get a model.", replies.Model),
    Endpoint(
        "POST",
        "/v1/completions",
        completions.completions,
        "Create text completions.",
        replies.TextCompletion,
        bodies.Completion,
        streams=True,
    ),
    Endpoint(
        "POST",
        "/v1/chat/completions",
        chat.chat_completions,
        "Create chat completions.",
        replies.ChatCompletion,
        bodies.Chat,
        streams=True,
    ),
    Endpoint("POST", "/v1/embeddings", tokens.embeddings, "Create embeddings.", replies.Embeddings, bodies.Embedding),
    Endpoint("POST", "/tokenize", tokens.tokenize, "Tokenize a text.", replies.Tokenized, bodies.Tokenize),
    Endpoint("POST", "/detokenize", tokens.detokenize, "Detokenize tokens.", replies.Detokenized, bodies.Detokenize),
    Endpoint(
        "GET", "/tokenizer_info", tokens.tokenizer_info, "Get the tokenizer.", replies.TokenizerInfo, query=("model",)
    ),
    Endpoint("GET", "/health", state.health, "Check health.", replies.Health),
    Endpoint("GET", "/metrics", state.metrics, "Get metrics for Prometheus.", "text/plain"),
    Endpoint("GET", "/api/status", state.status, "Get the status.", replies.Status),
    Endpoint(
        "POST",
        "/api/introspect",
        state.introspect,
        "Inspect every layer on a text.",
        replies.Introspection,
        bodies.Introspect,
    ),
    Endpoint("GET", "/api/sessions", state.sessions, "List the saved conversations.", replies.Sessions),
    Endpoint(
        "GET", "/api/sessions/{id}", state.session, "Get a conversation.", replies.Session, patterns={"id": SESSION}
    ),
    Endpoint(
        "POST",
        "/api/sessions/{id}/fork",
        state.fork_session,
        "Copy a conversation.",
        replies.Session,
        bodies.Fork,
        patterns={"id": SESSION},
    ),
    Endpoint(
        "DELETE",
        "/api/sessions/{id}",
        state.delete_session,
        "Delete a conversation.",
        replies.Deleted,
        patterns={"id": SESSION},
    ),
    Endpoint("POST", "/api/adapters", state.load_adapter, "Load an adapter.", replies.Model, bodies.AdapterLoad),
    Endpoint("DELETE", "/api/adapters/{model}/{name}", state.unload_adapter, "Unload an adapter.", replies.Deleted),
]


def document() -> dict[str, Any]:
    """The OpenAPI document of `ENDPOINTS`."""
    requests = {each.body for each in ENDPOINTS if each.body}
    responses = {each.reply for each in ENDPOINTS if isinstance(each.reply, type)} | {replies.Error}
    modes: list[Any] = [(each, "validation") for each in [*requests, *responses]]
    modes.sort(key=lambda pair: pair[0].__name__)
    _, schemas = models_json_schema(modes, ref_template=REFERENCE)
    paths: dict[str, Any] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "synthe",
            "version": synthe_core.__version__,
            "description": "Recurrent models behind an OpenAI-compatible API.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    names = (part[1:-1] for part in endpoint.path.split("/") if part.startswith("{"))
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1} | _pattern(endpoint, name),
        }
        for name in names
    ]
    parameters += [{"name": name, "in": "query", "schema": {"type": "string"}} for name in endpoint.query]
    media = (
        {"application/json": _reference(endpoint.reply)} if isinstance(endpoint.reply, type) else {endpoint.reply: {}}
    )
    if endpoint.streams:
        media["text/event-stream"] = {}
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": endpoint.summary,
        "responses": {
            "200": {"description": "success", "content": media},
            "default": {"description": "error", "content": {"application/json": _reference(replies.Error)}},
        },
    }
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body:
        operation["requestBody"] = {"required": True, "content": {"application/json": _reference(endpoint.body)}}
    if not OPEN.fullmatch(endpoint.path):
        operation["security"] = [{"key": []}, {}]
    return operation


def _pattern(endpoint: Endpoint, name: str) -> dict[str, Any]:
    return {"pattern": endpoint.patterns[name]} if name in endpoint.patterns else {}


def _reference(model: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": REFERENCE.format(model=model.__name__)}}
