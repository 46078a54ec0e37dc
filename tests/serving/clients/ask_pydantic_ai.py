"""pydantic-ai: runs, streams, history, native structured output; tools are refused in words."""

from __future__ import annotations

import asyncio
from typing import Literal

from common import KEY, MODEL, URL, check_shape, refused
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Place(BaseModel):
    city: Literal["Bern", "Lima"]
    size: Literal[1, 2, 3]


model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key=KEY))
agent = Agent(model, instructions="be brief", model_settings={"max_tokens": 6, "seed": 2})
first = agent.run_sync("hello")
assert first.usage.output_tokens == 6
second = agent.run_sync("again", message_history=first.all_messages())
assert isinstance(second.output, str)


async def streamed() -> str:
    async with agent.run_stream("again", message_history=first.all_messages()) as run:
        return [text async for text in run.stream_text()][-1]


assert asyncio.run(streamed()).strip() == second.output.strip()
shaped = Agent(model, output_type=NativeOutput(Place), model_settings={"max_tokens": 60})
check_shape(shaped.run_sync("a place").output.model_dump())
with_tools = Agent(model, retries=0)


@with_tools.tool_plain
def size_of(city: str) -> int:
    """The size of a city."""
    return 1


refused(ModelHTTPError, "tools are not supported yet", lambda: with_tools.run_sync("hello"))
print("ok")
