"""litellm: chats, streams, history, structured output, embeddings; tools are refused in words."""

from __future__ import annotations

from typing import Any

import litellm
from common import KEY, MODEL, SHAPE, URL, check_shape, check_unit, refused

at: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY, "max_retries": 0}
messages: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
reply = litellm.completion(messages=messages, max_tokens=6, seed=1, **at)
assert reply.usage.completion_tokens == 6
for history in (reply.choices[0].message, reply.choices[0].message.model_dump()):
    again = [*messages, history, {"role": "user", "content": "again"}]
    whole = litellm.completion(messages=again, max_tokens=6, seed=2, **at).choices[0].message.content
stream = litellm.completion(
    messages=again, max_tokens=6, seed=2, stream=True, stream_options={"include_usage": True}, **at
)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == whole
schema = {"type": "json_schema", "json_schema": {"name": "place", "schema": SHAPE, "strict": True}}
shaped = litellm.completion(messages=messages, response_format=schema, max_tokens=60, **at)
check_shape(shaped.choices[0].message.content)
parts = [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}]
litellm.completion(messages=parts, max_tokens=2, **at)
for row in litellm.embedding(input=["the sea", "rain"], **at).data:
    check_unit(row["embedding"])
assert litellm.text_completion(prompt="a", max_tokens=3, **{**at, "model": f"text-completion-openai/{MODEL}"}).choices
tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
refused(
    litellm.BadRequestError,
    "tools are not supported yet",
    lambda: litellm.completion(messages=messages, tools=[tool], **at),
)
print("ok")
