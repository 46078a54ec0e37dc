"""Chats with a swarm: the model `swarm`, which routes each request, and every specialist by its name."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from synthe_core.serving.api import bodies
from synthe_core.serving.api.completion_job import REASONS, sampling_values
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.response_format import DONE, EventStream
from synthe_core.serving.api.swarm_job import SwarmJob
from synthe_core.swarm.events import Answered, AnswerToken, DraftToken, Routed, SwarmEvent
from synthe_core.swarm.request import SwarmRequest

if TYPE_CHECKING:  # its database needs an extra
    from synthe_core.swarm.team import Swarm

SWARM = "swarm"
UNSUPPORTED = (
    "session",
    "logprobs",
    "continue_final_message",
    "chat_template_kwargs",
    "truncate_prompt_tokens",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "confidence",
)
"""Fields that an answer of a swarm has no place for."""


def is_for_swarm(api: Api, model: str) -> bool:
    """Whether a model's name is that of the swarm, or of one of its specialists."""
    return api.swarm is not None and (model == SWARM or model in api.swarm.spec.specialists)


async def swarm_chat(api: Api, call: Call, body: bodies.Chat) -> Response:
    """The next message of a conversation, by the swarm."""
    assert api.swarm is not None
    if body.n not in (None, 1):
        raise HttpError(400, "n: a swarm gives one answer", param="n")
    for name in UNSUPPORTED:
        if getattr(body, name, None):
            raise HttpError(400, f"{name}: not supported by a swarm; name a base model", param=name)
    if body.response_schema is not None or body.grammar is not None:
        raise HttpError(400, "a swarm's answers obey no schema or grammar; name a base model")
    swarm = api.swarm
    request = SwarmRequest(
        [{"role": each["role"], "content": _text(each["content"])} for each in (m.turn() for m in body.messages)],
        specialist=None if body.model == SWARM else body.model,
        user=user_of(call, body.user),
        conversation=body.conversation or "",
        max_tokens=_limit(api, call, body, swarm),
        synthesis=body.synthesis,
        sampling=sampling_values(body),
        seed=body.seed,
        stream=bool(body.stream),
        client=call.sender,
        owner=call.owner,
    )
    if api.settings.log_prompts:
        api.settings.log(f"prompt: {request.messages[-1]['content']!r}")
    return await SwarmResponse(body).respond(call, SwarmJob(api, swarm, request))


def user_of(call: Call, name: str | None) -> str:
    """Whose facts and answers: those of the API key's user of that name. Keys see nothing of each other."""
    return "/".join(filter(None, (call.owner, name or "")))


def _limit(api: Api, call: Call, body: bodies.Chat, swarm: Swarm) -> int:
    most, count = api.settings.max_tokens, body.count
    if count is not None and count > most:
        call.add_notice(f"max_tokens was cut to {most}, the maximum of this server")
    return min(most, swarm.spec.answers.max_tokens if count is None else count)


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


class SwarmResponse:
    """OpenAI's `chat.completion`, with the field `synthe`: in the first chunk `routing`, while several draft `draft`,
    in the last chunk what is known of the answer. A whole reply has `routing` and the latter in one."""

    def __init__(self, body: bodies.Chat) -> None:
        self.body = body
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": "fp_swarm",
        }

    async def respond(self, call: Call, job: SwarmJob) -> Response:
        """Streams the answer, or waits until it is complete."""
        if self.body.stream:
            events = job.events()
            job.begin()
            first = await anext(events)  # errors before it are a response of their own
            return EventStream(self._chunks(call, first, events), job)
        with job:
            job.begin()
            routed: Routed | None = None
            async for event in job.events():
                if isinstance(event, Routed):
                    routed = event
                elif isinstance(event, Answered):
                    assert routed is not None
                    self._note(call, event)
                    return JSONResponse(self._whole(routed, event))
        raise HttpError(500, "the swarm gave no answer")

    def _whole(self, routed: Routed, answer: Answered) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": None,
            "finish_reason": REASONS.get(answer.reason, "stop"),
        }
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(answer),
            "synthe": {"routing": routed.decision.json(), "facts": list(routed.facts), **answer.json()},
        }

    async def _chunks(
        self, call: Call, first: SwarmEvent, events: AsyncIterator[SwarmEvent]
    ) -> AsyncIterator[dict[str, str]]:
        yield self._chunk(first)
        try:
            async for event in events:
                yield self._chunk(event)
                if isinstance(event, Answered):
                    self._note(call, event)
                    if self.body.with_usage:
                        yield self._event([], {}, usage=_usage(event))
        except HttpError as error:
            call.note(error.reason)
            yield {"data": json.dumps(error.body)}
        yield {"data": DONE}

    def _chunk(self, event: SwarmEvent) -> dict[str, str]:
        match event:
            case Routed():
                facts = {"routing": event.decision.json(), "answer_id": event.answer_id, "facts": list(event.facts)}
                return self._delta({"role": "assistant", "content": "", "refusal": None}, {"synthe": facts})
            case DraftToken():
                draft = {"specialist": event.specialist, "text": event.text}
                return self._delta({}, {"synthe": {"draft": draft}})
            case AnswerToken():
                return self._delta({"content": event.text}, {})
            case Answered():
                return self._delta({}, {"synthe": event.json()}, REASONS.get(event.reason, "stop"))

    def _delta(self, delta: dict[str, Any], more: dict[str, Any], reason: str | None = None) -> dict[str, str]:
        return self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}], more)

    def _event(
        self, choices: list[dict[str, Any]], more: dict[str, Any], usage: dict[str, Any] | None = None
    ) -> dict[str, str]:
        chunk = {**self.head, "object": "chat.completion.chunk", "choices": choices, **more}
        if self.body.with_usage:
            chunk["usage"] = usage
        return {"data": json.dumps(chunk, ensure_ascii=False, allow_nan=False)}

    def _note(self, call: Call, answer: Answered) -> None:
        tokens = f"{answer.num_prompt_tokens} ({answer.num_cached_tokens} cached) + {answer.num_output_tokens} tokens"
        call.note(f"{self.body.model}  by {answer.by}  {tokens}")


def _usage(answer: Answered) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.num_prompt_tokens,
        "completion_tokens": answer.num_output_tokens,
        "total_tokens": answer.num_prompt_tokens + answer.num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.num_cached_tokens},
    }
