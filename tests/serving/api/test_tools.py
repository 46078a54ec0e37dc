"""Tools in /v1/chat/completions: a model of random weights writes nothing but valid calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

jsonschema_rs = pytest.importorskip("jsonschema_rs")

ADD = {
    "name": "add",
    "description": "Adds two numbers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": [1, 2, 3]}},
        "required": ["a", "b"],
    },
}
PICK = {
    "name": 'odd name/"ü"',
    "parameters": {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/node"}},
        "required": ["tree"],
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "leaf": {"type": "boolean"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["leaf", "next"],
            }
        },
    },
}
NOW = {"name": "now"}
SCHEMAS = {each["name"]: each.get("parameters", {"type": "object", "maxProperties": 0}) for each in (ADD, PICK, NOW)}
TOOLS = [{"type": "function", "function": each} for each in (ADD, PICK, NOW)]
USER = {"role": "user", "content": "two and two?"}


def chat(ask: Any, **fields: Any) -> Any:
    body = {"model": "chatty", "messages": [USER], "tools": TOOLS, "max_tokens": 300, **fields}
    return ask().post("/v1/chat/completions", json=body)


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    """(name, arguments) of each call; the arguments obey the schema."""
    calls = []
    for call in message.get("tool_calls") or ():
        assert call["type"] == "function" and call["id"].startswith("call_")
        arguments = json.loads(call["function"]["arguments"])
        jsonschema_rs.validate(SCHEMAS[call["function"]["name"]], arguments)
        calls.append((call["function"]["name"], arguments))
    return calls


@pytest.mark.parametrize("seed", range(6))
def test_required_calls_obey_their_schemas(ask: Any, seed: int) -> None:
    (choice,) = chat(ask, tool_choice="required", seed=seed, parallel_tool_calls=False).json()["choices"]
    calls = calls_of(choice["message"])
    assert choice["finish_reason"] == ("tool_calls" if calls else "length")
    assert choice["finish_reason"] == "length" or (len(calls) == 1 and choice["message"]["content"] is None)


def test_a_named_function_is_called(ask: Any) -> None:
    choice = {"type": "function", "function": {"name": "add"}}
    response = chat(ask, tool_choice=choice, n=3, seed=1, parallel_tool_calls=False).json()
    assert [[name for name, _ in calls_of(each["message"])] for each in response["choices"]] == [["add"]] * 3
    assert len({each["message"]["tool_calls"][0]["id"] for each in response["choices"]}) == 3


def test_allowed_tools_are_a_part_of_the_tools(ask: Any) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    (one,) = chat(ask, tool_choice=choice, parallel_tool_calls=False).json()["choices"]
    assert calls_of(one["message"]) == [("now", {})]


def test_parallel_calls_follow_each_other(ask: Any) -> None:
    numbers = set()
    for seed in range(4):
        choice = {"type": "function", "function": {"name": "now"}}
        (one,) = chat(ask, tool_choice=choice, seed=seed, max_tokens=600).json()["choices"]
        numbers.add(len(calls_of(one["message"])))
    assert max(numbers) > 1


def test_a_call_that_is_cut_is_left_out(ask: Any) -> None:
    for size in (1, 20, 40):
        (one,) = chat(ask, tool_choice="required", max_tokens=size).json()["choices"]
        assert one["finish_reason"] == "length" and "tool_calls" not in one["message"]


def stream(ask: Any, **fields: Any) -> tuple[list[dict[str, Any]], str]:
    """The tool calls that a stream adds up to, and the finish reason."""
    calls: list[dict[str, Any]] = []
    reason = ""
    for line in chat(ask, stream=True, **fields).text.splitlines():
        if not line.startswith("data: {"):
            continue
        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
        reason = choice["finish_reason"] or reason
        for delta in choice["delta"].get("tool_calls", ()):
            if delta["index"] == len(calls):
                calls.append({"id": delta["id"], "type": delta["type"], "function": dict(delta["function"])})
            else:
                calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    return calls, reason


def test_a_stream_has_the_same_calls(ask: Any) -> None:
    fields = {"tool_choice": "required", "seed": 3, "parallel_tool_calls": False}
    (whole,) = chat(ask, **fields).json()["choices"]
    calls, reason = stream(ask, **fields)
    assert reason == whole["finish_reason"]
    if reason == "tool_calls":
        assert calls_of({"tool_calls": calls}) == calls_of(whole["message"])


def test_auto_is_free_text_until_a_call(ask: Any) -> None:
    (one,) = chat(ask, max_tokens=20, seed=1).json()["choices"]
    (plain,) = chat(ask, max_tokens=20, seed=1, tool_choice="none").json()["choices"]
    assert isinstance(one["message"]["content"], str) and "tool_calls" not in one["message"]
    assert plain["finish_reason"] in ("stop", "length")


def test_auto_calls_are_constrained_from_their_mark_on(ask: Any) -> None:
    """The model is made to begin a call; the rest is its own."""
    messages = [USER, {"role": "assistant", "content": "Let me see. <tool_cal"}]
    fields: dict[str, Any] = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    bias = {str(ord(letter)): 100 for letter in "<tool_cal>"}
    (one,) = chat(ask, logit_bias=bias, max_tokens=200, seed=0, **fields).json()["choices"]
    assert one["finish_reason"] in ("tool_calls", "length", "stop")


def test_json_or_a_call(ask: Any) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    kinds = set()
    for seed in range(12):
        bias = {str(ord("<")): 1.5}
        (one,) = chat(ask, response_format=form, seed=seed, logit_bias=bias, parallel_tool_calls=False).json()[
            "choices"
        ]
        if one["finish_reason"] == "stop":
            jsonschema_rs.validate(schema, json.loads(one["message"]["content"]))
        kinds.add(one["finish_reason"])
        calls_of(one["message"])
    assert {"stop", "tool_calls"} <= kinds


def test_results_are_read(ask: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    result = {"role": "tool", "tool_call_id": "c1", "content": "3"}
    response = chat(ask, messages=[*messages, result], max_tokens=4, tool_choice="none")
    assert response.status_code == 200
    tokens = ask().post("/tokenize", json={"model": "chatty", "messages": [*messages, result], "tools": TOOLS}).json()
    text = ask().post("/detokenize", json={"model": "chatty", "tokens": tokens["tokens"]}).json()["prompt"]
    assert '<|assistant|><tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>' in text
    assert "<|user|><tool_response>\n3\n</tool_response>" in text and "Adds two numbers." in text


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function: this field is required"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type: "),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools[3].function.name: another function has this name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name: "),
        ({"tools": [{"type": "function", "function": {"name": "a\n"}}]}, "tools[0].function.name: must match"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters: arguments are an object",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "paramters": {}}}]},
            "tools[0].function: unknown field 'paramters' (did you mean 'parameters'?)",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#"}}}]},
            "the JSON schema allows no JSON of finite length",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"properties": {"x": {"pattern": "(a"}}}},
                    }
                ]
            },
            "the JSON schema is invalid",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"description": "x" * 60_000}}}]},
            "tools[0].function.parameters: the schema has more than 50,000 characters",
        ),
        ({"tools": TOOLS * 50}, "tools: must have at most 128"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "ad"}}},
            "tool_choice: no tool has that name (did you mean 'add'?)",
        ),
        (
            {"messages": [USER, {"role": "tool", "content": "x", "tool_call_id": "no"}]},
            "messages[1].tool_call_id: no call of a message before has this id",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": []}, {"role": "tool", "content": "x"}]},
            "messages[1].tool_call_id: a message of the tool needs one",
        ),
    ],
)
def test_malformed_tools_are_one_clear_error(ask: Any, fields: dict[str, Any], message: str) -> None:
    response = chat(ask, tool_choice=fields.pop("tool_choice", "required"), **fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"].startswith(message)


def test_a_result_that_is_too_long_is_refused(ask: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": ""}}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}]
    result = {"role": "tool", "tool_call_id": "c1", "content": "x" * 1_000_000}
    response = chat(ask, messages=[*messages, result], max_tokens=4)
    assert response.status_code == 400 and response.json()["error"]["code"] == "context_length_exceeded"


def test_a_stop_string_in_a_call_leaves_it_out(ask: Any) -> None:
    (one,) = chat(ask, tool_choice="required", stop='"arguments"', parallel_tool_calls=False).json()["choices"]
    assert one["finish_reason"] == "stop" and "tool_calls" not in one["message"] and one["message"]["content"] == ""


def test_calls_have_logprobs(ask: Any) -> None:
    choice = {"type": "function", "function": {"name": "now"}}
    fields = {"tool_choice": choice, "parallel_tool_calls": False, "logprobs": True, "top_logprobs": 1}
    response = chat(ask, **fields).json()
    (one,) = response["choices"]
    written = "".join(each["token"] for each in one["logprobs"]["content"])
    assert written == '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert response["usage"]["completion_tokens"] == len(one["logprobs"]["content"])
