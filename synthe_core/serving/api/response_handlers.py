"""/v1/responses: OpenAI's second protocol for conversations, which the server remembers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import JSONResponse, Response

from synthe_core.serving.api.agent_job import AgentJob, ToolResult, runs_tools
from synthe_core.serving.api.chat import chat_job
from synthe_core.serving.api.completion_job import CompletionJob, OutputDelta
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.response_bodies import CreateResponse, chat_body
from synthe_core.serving.api.response_events import Event, ResponseWriter, server_sent
from synthe_core.serving.api.response_format import EventStream
from synthe_core.serving.api.response_store import StoredResponse
from synthe_core.serving.api.swarm_chat import is_for_swarm


async def create_response(api: Api, call: Call, body: CreateResponse) -> Response:
    """Generates a response to the input, which may continue an earlier one."""
    if is_for_swarm(api, body.model):
        raise HttpError(400, f"{body.model} is a swarm, which answers /v1/chat/completions only", param="model")
    before = api.responses.get(call.owner, body.previous_response_id).messages if body.previous_response_id else []
    chat = chat_body(body, before)
    job: CompletionJob | AgentJob
    if runs_tools(api, chat):
        job = AgentJob(api, call, chat)
    else:
        _, job = await chat_job(api, call, chat)
    system = 1 if body.instructions else 0  # which the next response does not inherit
    given = [message.model_dump(exclude_none=True) for message in chat.messages[system:]]
    pending = _Pending(api, call, body, job, given)
    if body.stream:
        await job.begin()
        return EventStream(pending.events(), job)
    return await pending.whole()


class _Pending:
    """A response under way. given: the messages that it answers, without its instructions."""

    def __init__(
        self, api: Api, call: Call, body: CreateResponse, job: CompletionJob | AgentJob, given: list[dict[str, Any]]
    ) -> None:
        self._api, self._call, self._body, self._job, self._given = api, call, body, job, given
        self._writer = ResponseWriter(body, runs_tools=isinstance(job, AgentJob))

    async def whole(self) -> Response:
        with self._job:
            await self._job.begin()
            async for step in self._job.deltas():
                if not isinstance(step, ToolResult) and step.failure is not None:
                    raise step.failure
                self._push(step)
        self._end()
        self._finish()
        return JSONResponse(self._writer.value)

    async def events(self) -> AsyncIterator[dict[str, str]]:
        for event in self._writer.begin():
            yield server_sent(event)
        async for step in self._job.deltas():
            if not isinstance(step, ToolResult) and step.failure is not None:
                for event in self._writer.fail(step.failure.body["error"]):
                    yield server_sent(event)
                self._call.note(step.failure.reason)
                return
            for event in self._push(step):
                yield server_sent(event)
        last = self._end()
        self._finish()
        for event in last:
            yield server_sent(event)

    def _push(self, step: OutputDelta | ToolResult) -> list[Event]:
        if isinstance(step, ToolResult):
            return self._writer.push_result(step.call.id, step.text)
        return self._writer.push(step)

    def _end(self) -> list[Event]:
        """A run that a limit has ended is incomplete."""
        is_cut = isinstance(self._job, AgentJob) and self._job.run.ending not in ("answer", "cancelled")
        return self._writer.end(self._job.usage(), cut=is_cut)

    def _finish(self) -> None:
        self._job.record_last_output()
        self._call.note(f"{self._body.model}  {self._job.usage()}")
        if self._body.store is not False:
            own = self._job.run.transcript() if isinstance(self._job, AgentJob) else self._writer.messages()
            messages = [*self._given, *own]
            self._api.responses.put(self._call.owner, StoredResponse(self._writer.value, messages))


async def get_response(api: Api, call: Call, body: None) -> Response:
    return JSONResponse(api.responses.get(call.owner, call.request.path_params["id"]).value)


async def delete_response(api: Api, call: Call, body: None) -> Response:
    name = call.request.path_params["id"]
    api.responses.delete(call.owner, name)
    return JSONResponse({"id": name, "object": "response", "deleted": True})
