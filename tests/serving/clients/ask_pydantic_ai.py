"""pydantic-ai: runs, streams, history, structured output, tools."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Literal

from common import KEY, MODEL, URL, check_shape
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits


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
called: list[str] = []
settings = {"max_tokens": 300, "parallel_tool_calls": False, "extra_body": {"tool_choice": "required"}}
with_tools = Agent(model, model_settings=settings)


@with_tools.tool_plain
def size_of(city: Literal["Bern", "Lima"]) -> int:
    """The size of a city."""
    called.append(city)
    return 1


with contextlib.suppress(UsageLimitExceeded):  # a model of random weights calls for ever
    with_tools.run_sync("hello", usage_limits=UsageLimits(request_limit=3))
assert called and set(called) <= {"Bern", "Lima"}
check_shape(Agent(model, output_type=Place, model_settings={"max_tokens": 300}).run_sync("a place").output.model_dump())
print("ok")
