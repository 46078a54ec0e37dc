"""Chats whose tools the server itself runs (`synthe serve --tools`)."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import JSONResponse, Response

from synthe_core.agents.run import AgentCall, AgentRun
from synthe_core.agents.tool import described, run_tool
from synthe_core.serving.api import bodies
from synthe_core.serving.api.chat import ChatResponse, chat_job
from synthe_core.serving.api.chat import chat_completions as plain_chat
from synthe_core.serving.api.completion_job import CompletionJob, OutputDelta, Usage
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.messages import Message
from synthe_core.serving.api.response_format import DONE, EventStream
from synthe_core.serving.api.swarm_chat import is_for_swarm
from synthe_core.serving.api.tool_call_job import complete_calls
from synthe_core.serving.api.tools import Tool

REASONS = {"answer": "stop", "cancelled": "stop"}


def runs_tools(api: Api, body: bodies.Chat) -> bool:
    """Whether the server answers a chat with its own tools: it has some, and the client brings none."""
    return bool(api.settings.tools) and not body.tools and body.tool_choice != "none"


async def chat_completions(api: Api, call: Call, body: bodies.Chat) -> Response:
    """Generates the next message, with the server's tools if it has some and the client brings none."""
    if runs_tools(api, body) and not is_for_swarm(api, body.model):
        return await agent_chat(api, call, body)
    return await plain_chat(api, call, body)


async def agent_chat(api: Api, call: Call, body: bodies.Chat) -> Response:
    """Generates the next message, with the calls that it takes."""
    for name, is_given in (("n", (body.n or 1) > 1), ("session", body.session), ("logprobs", body.logprobs)):
        if is_given:
            message = "not supported where the server runs tools; tool_choice none answers without"
            raise HttpError(400, f"{name}: {message}", param=name)
    chat = AgentChat(api, call, body)
    await chat.begin()
    if body.stream:
        return EventStream(chat.events(), chat)
    return await chat.whole()


class AgentChat:
    """An agent's run in a request. Cancelled, it ends what runs: the generation, or a tool with its processes."""

    def __init__(self, api: Api, call: Call, body: bodies.Chat) -> None:
        self.api, self._call, self._body = api, call, body
        self._tools = api.settings.tools
        messages = [message.model_dump(exclude_none=True) for message in body.messages]
        self._run = AgentRun(messages, described(self._tools), api.settings.agent)
        self._cancelled = threading.Event()
        self._usage = Usage()
        self._job: CompletionJob | None = None

    async def begin(self) -> None:
        """Begins the first answer, so that errors of the request come as such."""
        await self._next_job()

    def cancel(self) -> None:
        self._cancelled.set()
        if self._job is not None:
            self._job.cancel()

    async def _next_job(self) -> None:
        """Begins an answer to the messages so far."""
        limit = self._run.remaining_tokens
        body = self._body.model_copy(
            update={
                "messages": [Message.model_validate(_known(each)) for each in self._run.messages],
                "tools": [Tool.model_validate(each) for each in self._run.tools],
                "max_completion_tokens": limit if self._body.count is None else min(limit, self._body.count),
                "max_tokens": None,
                "tool_choice": "auto" if self._run.num_steps else self._body.tool_choice,
            }
        )
        self._served, self._job = await chat_job(self.api, self._call, body)
        await self._job.begin()

    async def _steps(self) -> AsyncIterator[OutputDelta | tuple[AgentCall, str]]:
        """The deltas of all answers, and each call with its result. Raises HttpError."""
        while True:
            assert self._job is not None
            deltas: list[OutputDelta] = []
            async for delta in self._job.deltas():
                if delta.failure is not None:
                    raise delta.failure
                deltas.append(delta)
                yield delta
            self._add_usage(self._job.usage())
            calls = [AgentCall(each.id, each.name, each.arguments) for each in complete_calls(deltas)]
            text = "".join(delta.text for delta in deltas)
            is_cut = deltas[-1].reason == "length"
            self._run.add_answer(text, calls, self._job.usage().written, cut=is_cut)
            for call in calls:
                result = await self._result(call)
                self._run.add_result(call, result)
                yield call, result
            if not self._run.check_limits(cancelled=self._cancelled.is_set()):
                return
            await self._next_job()

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

    def _add_usage(self, usage: Usage) -> None:
        self._usage.prompt += usage.prompt
        self._usage.cached += usage.cached
        self._usage.written += usage.written

    async def whole(self) -> Response:
        try:
            async for _ in self._steps():
                pass
        finally:
            self.cancel()
        self._call.note(f"{self._body.model}  {self._run.num_steps} answers  {self._usage}")
        message = {"role": "assistant", "content": self._run.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reason}
        form = ChatResponse(self._body, self._served)
        head = {**form.head, "object": form.whole_kind}
        return JSONResponse({**head, "choices": [choice], "usage": self._usage.json(), "synthe": self._report})

    @property
    def _reason(self) -> str:
        return REASONS.get(self._run.ending or "answer", "length")

    @property
    def _report(self) -> dict[str, Any]:
        """The messages of the run, and why it ended."""
        return {"transcript": self._run.transcript(), "ending": self._run.ending}

    async def events(self) -> AsyncIterator[dict[str, str]]:
        form = ChatResponse(self._body, self._served)
        head = {**form.head, "object": form.chunk_kind}

        def event(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, str]:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
            return {"data": json.dumps({**head, "choices": [choice], **more}, ensure_ascii=False)}

        yield event({"role": "assistant", "content": "", "refusal": None})
        try:
            async for step in self._steps():
                if isinstance(step, OutputDelta):
                    if step.text:
                        yield event({"content": step.text})
                else:
                    call, result = step
                    yield event({}, synthe={"call": call.json(), "result": result})
        except HttpError as failure:
            yield {"data": json.dumps(failure.body)}
            self._call.note(failure.reason)
        else:
            yield event({}, self._reason, synthe=self._report)
            if self._body.with_usage:
                yield {"data": json.dumps({**head, "choices": [], "usage": self._usage.json()})}
            self._call.note(f"{self._body.model}  {self._run.num_steps} answers  {self._usage}")
        yield {"data": DONE}


def _known(message: dict[str, Any]) -> dict[str, Any]:
    """A message as a client would write it."""
    return {key: value for key, value in message.items() if value is not None}
