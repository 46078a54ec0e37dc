"""The table of endpoints, from which the routes and the OpenAPI document are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import synthe_core
from synthe_core.serving.api import (
    agent_chat,
    bodies,
    completions,
    response_bodies,
    response_handlers,
    responses,
    state,
    swarm_knowledge,
    swarm_learning,
    swarm_state,
    tokens,
)
from synthe_core.serving.api.body import SESSION
from synthe_core.serving.api.context import Handler
from synthe_core.serving.api.generated_response import GeneratedResponse
from synthe_core.serving.api.middleware import OPEN
from synthe_core.serving.api.settings import Role

Method = Literal["GET", "POST", "DELETE"]
RESPONSE = "^resp_[0-9a-f]{48}$"
REFERENCE = "#/components/schemas/{model}"


@dataclass(frozen=True)
class Endpoint:
    """body: schema of the request, None if it has none. response: schema of the response, or its content type.
    query: names of query parameters. cancellable: a client that disconnects cancels it. role: of the keys that may."""

    method: Method
    path: str
    handler: Handler
    summary: str
    response: type[BaseModel] | str
    body: type[BaseModel] | None = None
    query: tuple[str, ...] = ()
    streams: bool = False
    cancellable: bool = False
    patterns: dict[str, str] = field(default_factory=dict)
    role: Role = "user"


ENDPOINTS = [
    Endpoint("GET", "/v1/models", state.models, "List the models.", responses.Models),
    Endpoint("GET", "/v1/models/{model}", state.model, "Get a model.", responses.Model),
    Endpoint(
        "POST",
        "/v1/completions",
        completions.completions,
        "Create text completions.",
        responses.TextCompletion,
        bodies.Completion,
        streams=True,
        cancellable=True,
    ),
    Endpoint(
        "POST",
        "/v1/chat/completions",
        agent_chat.chat_completions,
        "Create chat completions.",
        responses.ChatCompletion,
        bodies.Chat,
        streams=True,
        cancellable=True,
    ),
    Endpoint(
        "POST",
        "/v1/responses",
        response_handlers.create_response,
        "Create a response, which may continue an earlier one.",
        GeneratedResponse,
        response_bodies.CreateResponse,
        streams=True,
        cancellable=True,
    ),
    Endpoint(
        "GET",
        "/v1/responses/{id}",
        response_handlers.get_response,
        "Get a response.",
        GeneratedResponse,
        patterns={"id": RESPONSE},
    ),
    Endpoint(
        "DELETE",
        "/v1/responses/{id}",
        response_handlers.delete_response,
        "Delete a response.",
        responses.Deleted,
        patterns={"id": RESPONSE},
    ),
    Endpoint(
        "POST",
        "/v1/embeddings",
        tokens.embeddings,
        "Create embeddings.",
        responses.Embeddings,
        bodies.Embedding,
        cancellable=True,
    ),
    Endpoint(
        "POST",
        "/tokenize",
        tokens.tokenize,
        "Tokenize a text.",
        responses.Tokenized,
        bodies.Tokenize,
        cancellable=True,
    ),
    Endpoint(
        "POST",
        "/detokenize",
        tokens.detokenize,
        "Detokenize tokens.",
        responses.Detokenized,
        bodies.Detokenize,
        cancellable=True,
    ),
    Endpoint(
        "GET", "/tokenizer_info", tokens.tokenizer_info, "Get the tokenizer.", responses.TokenizerInfo, query=("model",)
    ),
    Endpoint("GET", "/health", state.health, "Check health.", responses.Health),
    Endpoint("GET", "/metrics", state.metrics, "Get metrics for Prometheus.", "text/plain"),
    Endpoint("GET", "/api/status", state.status, "Get the status.", responses.Status),
    Endpoint(
        "POST",
        "/api/introspect",
        state.introspect,
        "Inspect every layer on a text.",
        responses.Introspection,
        bodies.Introspect,
        cancellable=True,
    ),
    Endpoint("GET", "/api/sessions", state.sessions, "List the saved conversations.", responses.Sessions),
    Endpoint(
        "GET", "/api/sessions/{id}", state.session, "Get a conversation.", responses.Session, patterns={"id": SESSION}
    ),
    Endpoint(
        "POST",
        "/api/sessions/{id}/fork",
        state.fork_session,
        "Copy a conversation.",
        responses.Session,
        bodies.Fork,
        patterns={"id": SESSION},
    ),
    Endpoint(
        "DELETE",
        "/api/sessions/{id}",
        state.delete_session,
        "Delete a conversation.",
        responses.Deleted,
        patterns={"id": SESSION},
    ),
    Endpoint("GET", "/api/swarm", swarm_state.swarm_status, "Get the swarm.", responses.SwarmStatus),
    Endpoint("POST", "/api/feedback", swarm_state.feedback, "Rate an answer.", responses.Rated, bodies.Feedback),
    Endpoint(
        "GET",
        "/api/swarm/facts",
        swarm_knowledge.facts,
        "Search what is known of a user and of everybody.",
        responses.SwarmFacts,
        query=("query", "user", "history", "limit"),
        cancellable=True,
    ),
    Endpoint(
        "POST",
        "/api/swarm/facts/{fact}",
        swarm_knowledge.change_fact,
        "Correct, trust or end a fact.",
        responses.SwarmFact,
        bodies.FactChange,
        patterns={"fact": "^[0-9]{1,18}$"},
    ),
    Endpoint(
        "GET",
        "/api/swarm/data",
        swarm_knowledge.user_data,
        "Get everything that is stored of a user.",
        responses.SwarmUserData,
        query=("user",),
    ),
    Endpoint(
        "DELETE",
        "/api/swarm/data",
        swarm_knowledge.delete_user_data,
        "Delete everything that is stored of a user.",
        responses.SwarmDataDeleted,
        query=("user",),
    ),
    Endpoint(
        "GET",
        "/api/swarm/versions",
        swarm_learning.versions,
        "List the learned versions of adapters.",
        responses.SwarmVersions,
        role="reviewer",
    ),
    Endpoint(
        "GET",
        "/api/swarm/history",
        swarm_learning.history,
        "List what was learned, refused and rolled back.",
        responses.SwarmHistory,
        query=("specialist", "limit"),
        role="reviewer",
    ),
    Endpoint(
        "GET",
        "/api/swarm/pairs",
        swarm_learning.pairs,
        "List the preference pairs.",
        responses.SwarmPairs,
        query=("state", "specialist", "limit", "after"),
        role="reviewer",
    ),
    Endpoint(
        "POST",
        "/api/swarm/pairs/{pair}",
        swarm_learning.review,
        "Approve or reject a pair.",
        responses.SwarmPair,
        bodies.Review,
        patterns={"pair": "^[0-9]{1,18}$"},
        role="reviewer",
    ),
    Endpoint(
        "POST",
        "/api/swarm/learn",
        swarm_learning.learn,
        "Start to learn from approved pairs.",
        responses.SwarmLearning,
        role="admin",
    ),
    Endpoint(
        "POST",
        "/api/swarm/rollback",
        swarm_learning.rollback,
        "Return to the version before.",
        responses.SwarmVersion,
        bodies.Rollback,
        role="admin",
    ),
    Endpoint(
        "GET",
        "/api/swarm/proposals",
        swarm_learning.proposals,
        "List the proposed specialists.",
        responses.SwarmProposals,
        role="reviewer",
    ),
    Endpoint(
        "POST",
        "/api/swarm/proposals/{name}",
        swarm_learning.decide,
        "Make a proposed specialist, or reject it.",
        responses.SwarmProposal,
        bodies.Decision,
        role="admin",
    ),
    Endpoint("POST", "/api/adapters", state.load_adapter, "Load an adapter.", responses.Model, bodies.AdapterLoad),
    Endpoint("DELETE", "/api/adapters/{model}/{name}", state.unload_adapter, "Unload an adapter.", responses.Deleted),
]


def document() -> dict[str, Any]:
    """The OpenAPI document of `ENDPOINTS`."""
    request_models = {each.body for each in ENDPOINTS if each.body}
    response_models = {each.response for each in ENDPOINTS if isinstance(each.response, type)} | {responses.Error}
    modes: list[Any] = [(each, "validation") for each in [*request_models, *response_models]]
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
        {"application/json": _reference(endpoint.response)}
        if isinstance(endpoint.response, type)
        else {endpoint.response: {}}
    )
    if endpoint.streams:
        media["text/event-stream"] = {}
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": endpoint.summary,
        "responses": {
            "200": {"description": "success", "content": media},
            "default": {"description": "error", "content": {"application/json": _reference(responses.Error)}},
        },
    }
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body:
        operation["requestBody"] = {"required": True, "content": {"application/json": _reference(endpoint.body)}}
    if endpoint.role != "user":
        operation["description"] = f"Needs an API key with the role {endpoint.role}."
    if not OPEN.fullmatch(endpoint.path):
        operation["security"] = [{"key": []}, {}]
    return operation


def _pattern(endpoint: Endpoint, name: str) -> dict[str, Any]:
    return {"pattern": endpoint.patterns[name]} if name in endpoint.patterns else {}


def _reference(model: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": REFERENCE.format(model=model.__name__)}}
