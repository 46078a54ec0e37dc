"""The schema of /v1/responses, for the OpenAPI document. A test checks every response against it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class GeneratedItem(BaseModel):
    """A message, with `role` and `content`; a call, with `call_id`, `name` and `arguments`; or a call of a tool that
    the server has run, `mcp_call`, with `name`, `arguments`, `server_label` and `output`."""

    id: str
    type: Literal["message", "function_call", "mcp_call"]
    status: Literal["completed", "incomplete"]
    role: Literal["assistant"] | None = None
    content: list[dict[str, Any]] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    server_label: str | None = None
    output: str | None = None


class GeneratedResponse(BaseModel):
    """Of /v1/responses."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[GeneratedItem]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    metadata: dict[str, str]
    usage: dict[str, Any]
    instructions: str | None
    max_output_tokens: int | None
    previous_response_id: str | None
    temperature: float | None
    top_p: float | None
