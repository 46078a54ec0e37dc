"""openai-agents: an agent with a tool, by chat completions and by responses, and structured output."""

from __future__ import annotations

import asyncio
from typing import Literal

import openai
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
from agents import set_tracing_disabled as without_tracing
from common import KEY, MODEL, URL
from pydantic import BaseModel


class Place(BaseModel):
    city: Literal["Bern", "Lima"]
    size: Literal[1, 2, 3]


called: list[str] = []


@function_tool
def size_of(city: Literal["Bern", "Lima"]) -> int:
    """The size of a city."""
    called.append(city)
    return 1


async def main() -> None:
    client = openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0)
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        called.clear()
        settings = ModelSettings(tool_choice="required", parallel_tool_calls=False, max_tokens=300)
        agent = Agent(
            name="a",
            instructions="be brief",
            model=kind(MODEL, openai_client=client),
            tools=[size_of],
            model_settings=settings,
            tool_use_behavior="stop_on_first_tool",
        )
        done = await Runner.run(agent, "hello")
        assert called and set(called) <= {"Bern", "Lima"} and str(done.final_output) == "1"
        limit = ModelSettings(max_tokens=100)
        shaped = Agent(name="b", model=kind(MODEL, openai_client=client), output_type=Place, model_settings=limit)
        again = await Runner.run(shaped, [*done.to_input_list(), {"role": "user", "content": "again"}])
        assert isinstance(again.final_output, Place)
        streamed = Runner.run_streamed(shaped, "hello")
        kinds = {event.type async for event in streamed.stream_events()}
        assert "raw_response_event" in kinds and isinstance(streamed.final_output, Place)


without_tracing(True)
asyncio.run(main())
print("ok")
