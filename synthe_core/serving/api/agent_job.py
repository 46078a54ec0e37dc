"""Answers of a model with the calls between them, whose tools the server itself runs (`synthe serve --tools`)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self

from synthe_core.agents.run import AgentCall, AgentRun
from synthe_core.agents.tool import described, run_tool
from synthe_core.serving.api import bodies
from synthe_core.serving.api.chat import chat_job
from synthe_core.serving.api.completion_job import CompletionJob, OutputDelta, Usage
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.messages import Message
from synthe_core.serving.api.swarm_chat import is_for_swarm
from synthe_core.serving.api.tool_call_job import complete_calls
from synthe_core.serving.api.tools import Tool, check_choice


@dataclass(frozen=True)
class ToolResult:
    """The result of a call."""

    call: AgentCall
    text: str


def runs_tools(api: Api, body: bodies.Chat) -> bool:
    """Whether the server answers a chat with its own tools: it has some, and the client brings none.

    HttpError for a `tool_choice` among tools that are not there.
    """
    if body.tools:
        return False
    own = () if is_for_swarm(api, body.model) else api.settings.tools
    try:
        check_choice(body.tool_choice, [each.name for each in own])
    except ValueError as error:
        raise HttpError(400, f"tool_choice: {error}", param="tool_choice") from None
    return bool(own) and body.tool_choice != "none"


class AgentJob:
    """An agent's run in a request. Cancelled, it ends what runs: the generation, or a tool with its processes."""

    def __init__(self, api: Api, call: Call, body: bodies.Chat) -> None:
        self.api, self._call, self._body = api, call, body
        self._tools = api.settings.tools
        messages = [message.model_dump(exclude_none=True) for message in body.messages]
        self.run = AgentRun(messages, described(self._tools), api.settings.agent)
        self._cancelled = threading.Event()
        self._usage = Usage()
        self._job: CompletionJob | None = None

    async def begin(self) -> Self:
        """Begins the first answer, so that errors of the request come as such."""
        await self._next_job()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        self._cancelled.set()
        if self._job is not None:
            self._job.cancel()

    def usage(self) -> Usage:
        """Of all answers so far."""
        return self._usage

    def record_last_output(self) -> None:
        """Stores the tokens of the last answer, for its inspection."""
        if self._job is not None:
            self._job.record_last_output()

    async def _next_job(self) -> None:
        """Begins an answer to the messages so far."""
        limit = self.run.remaining_tokens
        body = self._body.model_copy(
            update={
                "messages": [Message.model_validate(_known(each)) for each in self.run.messages],
                "tools": [Tool.model_validate(each) for each in self.run.tools],
                "max_completion_tokens": limit if self._body.count is None else min(limit, self._body.count),
                "max_tokens": None,
                "tool_choice": "auto" if self.run.num_steps else self._body.tool_choice,
            }
        )
        self.served, self._job = await chat_job(self.api, self._call, body)
        await self._job.begin()

    async def deltas(self) -> AsyncIterator[OutputDelta | ToolResult]:
        """The deltas of all answers, and the result of each call. One with a failure is the last."""
        while True:
            assert self._job is not None
            deltas: list[OutputDelta] = []
            async for delta in self._job.deltas():
                yield delta
                if delta.failure is not None:
                    return
                deltas.append(delta)
            calls = self._add_answer(deltas)
            for call in calls:
                result = await self._result(call)
                self.run.add_result(call, result)
                yield ToolResult(call, result)
            if not self.run.check_limits(cancelled=self._cancelled.is_set()):
                return
            try:
                await self._next_job()
            except HttpError as error:
                yield OutputDelta(0, "", [], failure=error)
                return

    def _add_answer(self, deltas: list[OutputDelta]) -> list[AgentCall]:
        """Adds an answer to the run; returns its calls."""
        assert self._job is not None
        usage = self._job.usage()
        self._usage.prompt += usage.prompt
        self._usage.cached += usage.cached
        self._usage.written += usage.written
        calls = [AgentCall(each.id, each.name, each.arguments) for each in complete_calls(deltas)]
        text = "".join(delta.text for delta in deltas)
        self.run.add_answer(text, calls, usage.written, cut=deltas[-1].reason == "length")
        return calls

    async def _result(self, call: AgentCall) -> str:
        """The result of a call, which runs in a thread, in the client's turn."""

        def work() -> str:
            return run_tool(self._tools, call.name, call.arguments, self._cancelled)

        in_turn = self.api.running_tools.run(self._call.sender, lambda: self.api.in_thread(work))
        running = asyncio.ensure_future(in_turn)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._cancelled.set()  # the tool ends soon, and nobody waits for it
            raise


def _known(message: dict[str, Any]) -> dict[str, Any]:
    """A message as a client would write it."""
    return {key: value for key, value in message.items() if value is not None}
