"""Chats with tools of models whose templates write calls in tags, as Python, or after `[ARGS]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from synthe_core.data.tool_calls.format import tool_format
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.app import App
from synthe_core.serving.api.settings import Settings

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}CALL{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALLS = {
    "qwen-xml": "<tool_call>\n<function={{ call.function.name }}>\n"
    "{% for key, value in call.function.arguments | items %}"
    "<parameter={{ key }}>\n{{ value }}\n</parameter>\n{% endfor %}</function>\n</tool_call>",
    "pythonic": "{# [func_name1(param1=value1)] #}[{{ call.function.name }}("
    "{% for key in call.function.arguments %}{{ key }}={{ call.function.arguments[key] }}{% endfor %})]",
    "mistral-args": "[TOOL_CALLS]{{ call.function.name }}[ARGS]{{ call.function.arguments | tojson }}",
}
ADD: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "s": {"type": "string", "maxLength": 3}},
    "required": ["a", "s"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_streams_and_its_result_is_read(checkpoints: Path, name: str) -> None:
    model = LoadedModel.load(checkpoints / "chatty")
    model.tokenizer.chat_template = TEMPLATE.replace("CALL", CALLS[name])
    assert tool_format(model.tokenizer.chat_template).name == name
    with AsyncEngine([model], max_num_seqs=4) as engine:
        http: Any = TestClient(App(engine, Settings(hosts=None)))
        client = openai.OpenAI(base_url="http://testserver/v1", api_key="none", max_retries=0, http_client=http)
        messages: list[Any] = [{"role": "user", "content": "go"}]
        tools: list[Any] = [{"type": "function", "function": {"name": "add", "parameters": ADD}}]
        fields: dict[str, Any] = {"model": "chatty", "tools": tools, "max_tokens": 200, "parallel_tool_calls": False}
        choice = client.chat.completions.create(messages=messages, tool_choice="required", seed=1, **fields).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
        (call,) = choice.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert 0 <= arguments["a"] <= 9 and len(arguments["s"]) <= 3
        streamed = client.chat.completions.create(
            messages=messages, tool_choice="required", seed=1, stream=True, **fields
        )
        deltas = [each for chunk in streamed for each in chunk.choices[0].delta.tool_calls or []]
        assert json.loads("".join(each.function.arguments or "" for each in deltas if each.function)) == arguments
        messages += [
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "3"},
        ]
        last = client.chat.completions.create(messages=messages, tool_choice="none", **fields)
        assert last.choices[0].finish_reason in ("stop", "length")
