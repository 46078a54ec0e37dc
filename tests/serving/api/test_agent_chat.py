"""Chats whose tools the server runs, over an engine with scripted answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from synthe_core.agents.run import AgentLimits
from synthe_core.inference.outputs import Output
from synthe_core.inference.request import Request
from synthe_core.serving.api.app import App
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from tests.serving.api.scripted import Scripted, answer
from tests.serving.api.test_hang_up import hang_up, wait_until

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 40, "b": 2}}\n</tool_call>'
CHAT = {"model": "m", "messages": [{"role": "user", "content": "40 + 2?"}]}
CLIENTS = {"type": "function", "function": {"name": "mine"}}


class Add:
    name, description = "add", "Adds two numbers."
    parameters: Mapping[str, Any] = {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"]}

    def __init__(self) -> None:
        self.began, self.cancelled = threading.Event(), threading.Event()
        self.waits = False

    def run(self, arguments: Mapping[str, Any], cancelled: threading.Event) -> str:
        self.began.set()
        if self.waits and cancelled.wait(60):
            self.cancelled.set()
        return str(arguments["a"] + arguments["b"])


def scripted(*texts: str) -> Scripted:
    """Answers with these texts, the last one for ever."""
    left = list(texts)

    def script(request: Request) -> Sequence[Output]:
        return answer(request, left.pop(0) if len(left) > 1 else left[0], "stop")

    return Scripted(script)


def post(engine: Scripted, tool: Add, limits: AgentLimits | None = None, **fields: Any) -> Any:
    settings = Settings(tools=(tool,), agent=limits or AgentLimits(), hosts=None)
    return TestClient(App(engine, settings)).post("/v1/chat/completions", json={**CHAT, **fields})  # type: ignore[arg-type]


def test_the_reply_has_the_transcript() -> None:
    engine = scripted(f"Let me see. {CALL}", "It is 42.")
    response = post(engine, Add()).json()
    (choice,) = response["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("It is 42.", "stop")
    one, result, last = response["synthe"]["transcript"]
    assert json.loads(one["tool_calls"][0]["function"]["arguments"]) == {"a": 40, "b": 2}
    assert result == {"role": "tool", "tool_call_id": one["tool_calls"][0]["id"], "name": "add", "content": "42"}
    assert last == {"role": "assistant", "content": "It is 42."} and response["synthe"]["ending"] == "answer"
    first, second = (
        bytes(token for token in each.prompt_token_ids if token < 256).decode() for each in engine.requests
    )
    assert "Adds two numbers." in first and "<tool_response>\n42\n</tool_response>" in second
    assert response["usage"]["prompt_tokens"] > 0


def test_a_stream_has_texts_calls_and_results() -> None:
    text = post(scripted(f"Let me see. {CALL}", "It is 42."), Add(), stream=True).text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in chunks) == "Let me see. It is 42."
    assert [each["synthe"]["result"] for each in chunks if "result" in each.get("synthe", {})] == ["42"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop" and text.rstrip().endswith("[DONE]")
    assert [each["role"] for each in chunks[-1]["synthe"]["transcript"]] == ["assistant", "tool", "assistant"]


def test_steps_are_limited() -> None:
    response = post(scripted(CALL), Add(), AgentLimits(steps=3)).json()
    assert response["synthe"]["ending"] == "steps" and response["choices"][0]["finish_reason"] == "length"
    assert len(response["synthe"]["transcript"]) == 6


@pytest.mark.parametrize("fields", [{"tools": [CLIENTS]}, {"tool_choice": "none"}])
def test_a_client_with_tools_or_without_any_wish_gets_a_plain_answer(fields: dict[str, Any]) -> None:
    tool = Add()
    response = post(scripted(CALL), tool, **fields).json()
    assert "synthe" not in response and not tool.began.is_set()


@pytest.mark.parametrize("fields", [{"n": 2}, {"session": "s"}, {"logprobs": True}])
def test_what_a_run_cannot_have_is_refused(fields: dict[str, Any]) -> None:
    response = post(scripted("x"), Add(), **fields)
    assert response.status_code == 400 and "not supported where the server runs tools" in response.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_ends_the_tool(stream: bool) -> None:
    tool = Add()
    tool.waits = True
    engine: Any = scripted(CALL)
    with Server(engine, replace(Settings(), tools=(tool,))) as server:
        hang_up(server, "/v1/chat/completions", {**CHAT, "stream": stream}, tool.began.wait)
        wait_until(tool.cancelled.is_set)
