"""instructor: structured output by a schema and by JSON mode, streamed too, and by tools."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
from common import KEY, MODEL, URL, check_shape
from pydantic import BaseModel


class Place(BaseModel):
    city: Literal["Bern", "Lima"]
    size: Literal[1, 2, 3]


messages: list[Any] = [{"role": "user", "content": "a place"}]
plain = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
fields: dict[str, Any] = {"model": MODEL, "messages": messages, "response_model": Place, "max_retries": 0}
check_shape(client.create(max_tokens=60, **fields).model_dump())
*_, last = client.create_partial(max_tokens=60, **fields)
check_shape(last.model_dump())
tools = instructor.from_openai(plain, mode=instructor.Mode.TOOLS)
check_shape(tools.create(max_tokens=300, **fields).model_dump())
print("ok")
