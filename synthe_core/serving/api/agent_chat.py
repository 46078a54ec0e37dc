"""Chats whose tools the server itself runs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import JSONResponse, Response

from synthe_core.serving.api import bodies
from synthe_core.serving.api.agent_job import AgentJob, ToolResult, runs_tools
from synthe_core.serving.api.chat import ChatResponse
from synthe_core.serving.api.chat import chat_completions as plain_chat
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.response_format import DONE, EventStream

REASONS = {"answer": "stop", "cancelled": "stop"}


async def chat_completions(api: Api, call: Call, body: bodies.Chat) -> Response:
    """Generates the next message, with the server's tools if it has some and the client brings none."""
    if runs_tools(api, body):
        return await agent_chat(api, call, body)
    return await plain_chat(api, call, body)


async def agent_chat(api: Api, call: Call, body: bodies.Chat) -> Response:
    """Generates the next message, with the calls that it takes."""
    for name, is_given in (("n", (body.n or 1) > 1), ("session", body.session), ("logprobs", body.logprobs)):
        if is_given:
            message = "not supported where the server runs tools; tool_choice none answers without"
            raise HttpError(400, f"{name}: {message}", param=name)
    chat = AgentChat(AgentJob(api, call, body), call, body)
    if body.stream:
        await chat.job.begin()
        return EventStream(chat.events(), chat.job)
    return await chat.whole()


class AgentChat:
    """An agent's run as a chat completion."""

    def __init__(self, job: AgentJob, call: Call, body: bodies.Chat) -> None:
        self.job, self._call, self._body = job, call, body

    async def whole(self) -> Response:
        with self.job:
            await self.job.begin()
            async for step in self.job.deltas():
                if not isinstance(step, ToolResult) and step.failure is not None:
                    raise step.failure
        self._note()
        message = {"role": "assistant", "content": self.job.run.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reason}
        form = ChatResponse(self._body, self.job.served)
        head = {**form.head, "object": form.whole_kind}
        return JSONResponse({**head, "choices": [choice], "usage": self.job.usage().json(), "synthe": self._report})

    @property
    def _reason(self) -> str:
        return REASONS.get(self.job.run.ending or "answer", "length")

    @property
    def _report(self) -> dict[str, Any]:
        """The messages of the run, and why it ended."""
        return {"transcript": self.job.run.transcript(), "ending": self.job.run.ending}

    def _note(self) -> None:
        self._call.note(f"{self._body.model}  {self.job.run.num_steps} answers  {self.job.usage()}")

    async def events(self) -> AsyncIterator[dict[str, str]]:
        form = ChatResponse(self._body, self.job.served)
        head = {**form.head, "object": form.chunk_kind}

        def event(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, str]:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
            return {"data": json.dumps({**head, "choices": [choice], **more}, ensure_ascii=False)}

        yield event({"role": "assistant", "content": "", "refusal": None})
        async for step in self.job.deltas():
            if isinstance(step, ToolResult):
                yield event({}, synthe={"call": step.call.json(), "result": step.text})
            elif step.failure is not None:
                yield {"data": json.dumps(step.failure.body)}
                self._call.note(step.failure.reason)
                yield {"data": DONE}
                return
            elif step.text:
                yield event({"content": step.text})
        yield event({}, self._reason, synthe=self._report)
        if self._body.with_usage:
            yield {"data": json.dumps({**head, "choices": [], "usage": self.job.usage().json()})}
        self._note()
        yield {"data": DONE}
