"""OpenAI's client: chats, streams, history, structured output, embeddings, tools and responses."""

from __future__ import annotations

import enum
import json
from typing import Any

import openai
from common import KEY, MODEL, URL, check_shape, check_unit
from pydantic import BaseModel


class City(enum.Enum):
    BERN = "Bern"
    LIMA = "Lima"


class Place(BaseModel):
    city: City
    size: int = 0


client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
messages: list[Any] = [{"role": "user", "content": "hello"}]
reply = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=6, seed=1, user="me", store=False)
assert reply.choices[0].message.content is not None and reply.usage.completion_tokens == 6
messages += [reply.choices[0].message, {"role": "user", "content": "again"}]
client.chat.completions.create(model=MODEL, messages=messages, max_tokens=6)
messages[1] = reply.choices[0].message.model_dump()
whole = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=6, seed=2)

options: Any = {"include_usage": True}
stream = client.chat.completions.create(
    model=MODEL, messages=messages, max_tokens=6, seed=2, stream=True, stream_options=options
)
chunks = list(stream)
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert text == whole.choices[0].message.content
assert chunks[-1].usage.completion_tokens == 6
with client.chat.completions.stream(model=MODEL, messages=messages, max_completion_tokens=6) as events:
    assert [event for event in events][-1].type in ("content.done", "chunk")

parsed = client.chat.completions.parse(model=MODEL, messages=messages, response_format=Place, max_tokens=300, seed=3)
assert isinstance(parsed.choices[0].message.parsed, Place)
client.chat.completions.create(  # with `parsed` in it
    model=MODEL, messages=[*messages, parsed.choices[0].message, messages[0]], max_tokens=2
)
shaped = client.chat.completions.create(
    model=MODEL,
    messages=messages,
    max_tokens=60,
    extra_body={"guided_json": {"type": "object", "properties": {"city": {"enum": ["Bern"]}, "size": {"enum": [1]}},
                                "required": ["city", "size"]}},
)  # fmt: skip
check_shape(shaped.choices[0].message.content)

for encoding in ({"encoding_format": "float"}, {}):  # its default is base64
    for row in client.embeddings.create(model=MODEL, input=["the sea", "rain"], **encoding).data:
        check_unit(row.embedding)
assert client.completions.create(model=MODEL, prompt="a", max_tokens=3, echo=True).choices[0].text.startswith("a")
assert MODEL in [model.id for model in client.models.list()]

parameters: Any = {"type": "object", "properties": {"city": {"enum": ["Bern", "Lima"]}}, "required": ["city"]}
parameters["additionalProperties"] = False
tool: Any = {"type": "function", "function": {"name": "size_of", "parameters": parameters, "strict": True}}
calling: Any = {"model": MODEL, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False, "seed": 1}
called = client.chat.completions.create(messages=messages[:1], max_tokens=300, **calling).choices[0]
assert called.finish_reason == "tool_calls" and called.message.tool_calls is not None
(call,) = called.message.tool_calls
assert json.loads(call.function.arguments)["city"] in ("Bern", "Lima")
result: Any = {"role": "tool", "tool_call_id": call.id, "content": "1"}
client.chat.completions.create(model=MODEL, messages=[messages[0], called.message, result], tools=[tool], max_tokens=4)
with client.chat.completions.stream(messages=messages[:1], max_tokens=300, **calling) as events:
    kinds = {event.type for event in events}
    assert "tool_calls.function.arguments.done" in kinds
    (again,) = events.get_final_completion().choices[0].message.tool_calls
    assert (again.function.name, again.function.arguments) == (call.function.name, call.function.arguments)

flat: Any = {"type": "function", "name": "size_of", "parameters": parameters, "strict": True}
options = {"model": MODEL, "tools": [flat], "max_output_tokens": 300}
first = client.responses.create(input="hello", tool_choice="required", parallel_tool_calls=False, **options)
(item,) = first.output
assert item.type == "function_call" and json.loads(item.arguments)["city"] in ("Bern", "Lima")
output: Any = [{"type": "function_call_output", "call_id": item.call_id, "output": "1"}]
options |= {"max_output_tokens": 20, "extra_body": {"seed": 1}}
second = client.responses.create(input=output, previous_response_id=first.id, **options)
assert second.output_text and second.usage.input_tokens > first.usage.input_tokens
with client.responses.stream(model=MODEL, input="hello", max_output_tokens=8) as running:
    assert {"response.output_text.delta", "response.completed"} & {event.type for event in running}
print("ok")
