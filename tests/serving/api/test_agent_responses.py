"""/v1/responses whose tools the server runs, by OpenAI's own client, over an engine with scripted answers."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from synthe_core.agents.run import AgentLimits
from synthe_core.serving.api.app import App
from synthe_core.serving.api.settings import Settings
from tests.serving.api.scripted import Scripted, answer
from tests.serving.api.test_agent_chat import CALL, Add, post, scripted

TWO_CALLS = f"{CALL}\n{CALL}"


def client_of(engine: Scripted, limits: AgentLimits | None = None, *tools: Any) -> openai.OpenAI:
    settings = Settings(tools=tools or (Add(),), agent=limits or AgentLimits(), hosts=None)
    http: Any = TestClient(App(engine, settings))  # type: ignore[arg-type]
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", max_retries=0, http_client=http)


def prompt_of(engine: Scripted, number: int) -> str:
    return bytes(token for token in engine.requests[number].prompt_token_ids if token < 256).decode()


def test_items_have_the_calls_with_their_results() -> None:
    engine = scripted(f"Let me see. {TWO_CALLS}", "It is 42.", "Yes.")
    client = client_of(engine)
    response = client.responses.create(model="m", input="40 + 2?")
    text, one, two, last = response.output
    assert (text.type, last.type, response.output_text) == ("message", "message", "Let me see. It is 42.")
    for call in (one, two):
        assert call.type == "mcp_call" and call.status == "completed" and call.server_label == "synthe"
        assert (call.name, json.loads(call.arguments), call.output) == ("add", {"a": 40, "b": 2}, "42")
    assert response.status == "completed" and response.usage is not None
    assert response.usage.input_tokens == sum(len(each.prompt_token_ids) for each in engine.requests)
    client.responses.create(model="m", input="Sure?", previous_response_id=response.id)
    assert prompt_of(engine, 2).startswith(prompt_of(engine, 1).rstrip()) and "It is 42." in prompt_of(engine, 2)


def test_items_may_be_sent_back() -> None:
    engine = scripted(CALL, "It is 42.", "Yes.")
    client = client_of(engine)
    output = client.responses.create(model="m", input="40 + 2?").output
    back: Any = [each.model_dump(exclude_none=True) for each in output]
    client.responses.create(
        model="m", input=[{"role": "user", "content": "40 + 2?"}, *back, {"role": "user", "content": "Sure?"}]
    )
    assert "<tool_response>\n42\n</tool_response>" in prompt_of(engine, 2)


def test_a_stream_has_the_events_of_the_calls() -> None:
    stream = client_of(scripted(CALL, "It is 42.")).responses.create(model="m", input="40 + 2?", stream=True)
    events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type.removeprefix("response.") for event in events))
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "mcp_call.in_progress",
        "mcp_call_arguments.delta",
        "mcp_call_arguments.done",
        "mcp_call.completed",
        "output_item.done",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "completed",
    ]
    (done,) = [event for event in events if event.type == "response.mcp_call_arguments.done"]
    assert json.loads(done.arguments) == {"a": 40, "b": 2}
    assert [item.type for item in events[-1].response.output] == ["mcp_call", "message"]  # type: ignore[union-attr]


def test_limits_and_cut_calls_leave_it_incomplete() -> None:
    response = client_of(scripted(CALL), AgentLimits(steps=2)).responses.create(model="m", input="40 + 2?")
    assert response.status == "incomplete" and [item.type for item in response.output] == ["mcp_call"] * 2
    engine = Scripted(lambda request: answer(request, CALL[:-20], "length"))
    response = client_of(engine).responses.create(model="m", input="40 + 2?")
    assert response.status == "incomplete" and response.output == []


def test_a_failure_between_answers_ends_the_response() -> None:
    body = {"model": "m", "input": "40 + 2?"}
    first = len(prompt_of(scripted_prompt(), 0))
    settings = Settings(tools=(Add(),), hosts=None, max_prompt=first + 20)
    http: Any = TestClient(App(scripted(CALL, CALL), settings))  # type: ignore[arg-type]
    assert http.post("/v1/responses", json=body).status_code == 400
    events = http.post("/v1/responses", json={**body, "stream": True}).text
    assert "response.mcp_call.completed" in events and "response.failed" in events


def scripted_prompt() -> Scripted:
    """An engine that has read the first prompt."""
    engine = scripted("x")
    client_of(engine).responses.create(model="m", input="40 + 2?")
    return engine


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": [{"type": "function", "name": "mine"}]}])
def test_a_client_with_tools_or_without_any_wish_gets_a_plain_answer(fields: dict[str, Any]) -> None:
    tool = Add()
    response = client_of(scripted(CALL), None, tool).responses.create(model="m", input="x", **fields)
    assert not tool.began.is_set() and "mcp_call" not in [item.type for item in response.output]


CHOICE: dict[str, Any] = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize("choice", ["required", CHOICE])
def test_a_call_of_the_servers_tools_may_be_required(choice: Any) -> None:
    engine, tool = scripted(CALL, "It is 42."), Add()
    assert post(engine, tool, tool_choice=choice).json()["choices"][0]["message"]["content"] == "It is 42."
    first, second = (each.tool_use for each in engine.requests)
    assert first is not None and first.required and second is not None and not second.required
    engine = scripted(CALL, "It is 42.")
    flat: Any = choice if choice == "required" else {"type": "function", "name": "add"}
    response = client_of(engine).responses.create(model="m", input="x", tool_choice=flat)
    assert response.output_text == "It is 42." and (use := engine.requests[0].tool_use) is not None and use.required


def test_a_choice_among_no_tools_is_refused() -> None:
    named = {"type": "function", "function": {"name": "ad"}}
    response = post(scripted("x"), Add(), tool_choice=named)
    assert response.status_code == 400 and "did you mean 'add'?" in response.text
    plain = TestClient(App(scripted("x"), Settings(hosts=None)))  # type: ignore[arg-type]
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/responses", {"input": "x"}),
    ):
        response = plain.post(path, json={"model": "m", "tool_choice": "required", **body})
        assert response.status_code == 400 and response.json()["error"]["param"] == "tool_choice"
