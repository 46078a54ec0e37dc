"""/v1/responses, by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.server import Server
from tests.serving.api.conftest import CHATML, LIMITS

NOW = {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def tool_server(checkpoints: Path) -> Iterator[Server]:
    model = LoadedModel.load(checkpoints / "chatty")
    model.tokenizer.chat_template = CHATML
    with AsyncEngine([model], max_num_seqs=8) as own, Server(own, replace(LIMITS, max_prompt=4000)) as server:
        yield server


@pytest.fixture
def client(tool_server: Server) -> openai.OpenAI:
    """OpenAI's own client of a server that reads prompts with tools."""
    return openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="none", max_retries=0, timeout=60)


def create(client: openai.OpenAI, **fields: Any) -> Any:
    return client.responses.create(**{"model": "chatty", "input": "hello", "max_output_tokens": 12, **fields})


def test_a_text(client: openai.OpenAI) -> None:
    response = create(client, instructions="be brief", metadata={"a": "b"}, extra_body={"seed": 1})
    assert response.output[0].type == "message" and response.output_text == response.output[0].content[0].text
    assert response.status in ("completed", "incomplete") and response.usage.output_tokens == 12
    assert response.metadata == {"a": "b"}


def test_a_call_and_its_result(client: openai.OpenAI) -> None:
    first = create(client, tools=[NOW], tool_choice="required", max_output_tokens=200, parallel_tool_calls=False)
    (call,) = first.output
    assert (call.type, call.name, json.loads(call.arguments), first.status) == ("function_call", "now", {}, "completed")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "12:00"}
    second = create(client, input=[result], previous_response_id=first.id, tools=[NOW], tool_choice="none")
    assert second.previous_response_id == first.id and second.usage.input_tokens > first.usage.output_tokens
    items: Any = [{"role": "user", "content": "hello"}, call.model_dump(exclude_none=True), result]
    alone = create(client, input=items, tools=[NOW], tool_choice="none")
    assert alone.usage.input_tokens == second.usage.input_tokens  # the same conversation
    with pytest.raises(openai.BadRequestError, match="no call of a message before has this id"):
        create(client, input=[result])


def test_a_conversation_branches(client: openai.OpenAI) -> None:
    first = create(client, extra_body={"seed": 1})
    one, other = (create(client, input=text, previous_response_id=first.id) for text in ("and?", "and then?"))
    assert one.usage.input_tokens < other.usage.input_tokens
    assert one.usage.input_tokens > first.usage.input_tokens + 5


def test_fetched_and_deleted(client: openai.OpenAI) -> None:
    response = create(client)
    assert client.responses.retrieve(response.id).output == response.output
    client.responses.delete(response.id)
    for attempt in (
        lambda: client.responses.retrieve(response.id),
        lambda: create(client, previous_response_id=response.id),
    ):
        with pytest.raises(openai.NotFoundError, match="no response has this id"):
            attempt()
    unstored = create(client, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


def test_a_stream_of_text(client: openai.OpenAI) -> None:
    events = list(create(client, stream=True, extra_body={"seed": 2}))
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].response.output_text == text == create(client, extra_body={"seed": 2}).output_text


def test_a_stream_of_a_call(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"tools": [NOW], "tool_choice": "required", "parallel_tool_calls": False}
    with client.responses.stream(model="chatty", input="hi", max_output_tokens=200, **fields) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= kinds
    assert [(item.type, item.arguments) for item in final.output] == [("function_call", "{}")]


def test_structured_output(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
    text: Any = {"format": {"type": "json_schema", "name": "a", "schema": schema}}
    assert set(json.loads(create(client, text=text, max_output_tokens=40).output_text)) == {"x"}


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "computer_call"}]}, "this type of item is not supported"),
        ({"background": True}, "background: not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "function", "name": "g"}, "tools": [NOW]}, "no tool has that name"),
    ],
)
def test_what_is_not_supported_is_named(client: openai.OpenAI, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        create(client, **fields)


def test_requests_with_different_tools_at_a_time(client: openai.OpenAI) -> None:
    def call(number: int) -> str:
        tool = {**NOW, "name": f"tool_{number}"}
        response = create(
            client, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_output_tokens=100
        )
        return str(response.output[0].name)

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(call, range(6))) == [f"tool_{number}" for number in range(6)]
