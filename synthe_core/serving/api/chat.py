"""POST /v1/chat/completions: the next message of a conversation."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from synthe_core.data.tool_calls.format import tool_format
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import Logprob
from synthe_core.inference.request import Request, ToolUse
from synthe_core.serving.api import bodies, prompts
from synthe_core.serving.api.completion_job import (
    CompletionJob,
    OutputDelta,
    OutputToken,
    finite,
    response_schema,
    sampling,
    seeds,
    token_text,
)
from synthe_core.serving.api.completions import check_counts, check_logprobs, note_prompts, output_limit
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.response_format import ResponseFormat, confidences
from synthe_core.serving.api.swarm_chat import is_for_swarm, swarm_chat
from synthe_core.serving.api.tool_call_job import ToolCallJob, ToolDelta, complete_calls
from synthe_core.serving.api.tools import described, tool_use


async def chat_completions(api: Api, call: Call, body: bodies.Chat) -> Response:
    """Generates the next message, with `n` choices."""
    if is_for_swarm(api, body.model):
        if body.calls_tools:
            raise HttpError(400, "tools: a swarm calls none", param="tools")
        return await swarm_chat(api, call, body)
    if name := next((name for name in ("conversation", "synthesis") if getattr(body, name) is not None), None):
        raise HttpError(400, f"{name}: {body.model} is no swarm", param=name)
    served, job = await chat_job(api, call, body)
    return await ChatResponse(body, served).respond(call, job)


async def chat_job(api: Api, call: Call, body: bodies.Chat) -> tuple[LoadedModel, CompletionJob]:
    """The model of a chat, and the job that generates its next message, not begun."""
    served = api.served(body.model, call.owner)
    check_counts(api, body, 1)
    continues = api.has_session(body.session, call.owner)
    tails = prompts.tails_of(api, served, call.owner, body.session) if continues else None
    reading = prompts.Reading(
        truncated_to=body.truncate_prompt_tokens,
        begins=body.add_special_tokens,
        answer=body.add_generation_prompt is not False,
        continues=bool(body.continue_final_message),
        values=body.template_values,
        tools=described(body.tools) if body.tools and body.calls_tools else (),
    )
    use = _tool_use(api, served, body)
    prompt = await prompts.conversation(api, served, body.messages, reading, tails=tails)
    default = api.settings.max_tokens if served.defaults.max_tokens is None else served.defaults.max_tokens
    count = output_limit(api, call, served, body, len(prompt.tokens), default)
    note_prompts(api, [prompt.text])
    requests = [
        Request(
            body.model,
            prompt.tokens,
            max_tokens=count,
            sampling=sampling(body, served.defaults),
            min_tokens=min(body.min_tokens or 0, count),
            stop=(*body.stops, *prompt.stop),
            stop_token_ids=tuple(body.stop_token_ids or ()),
            seed=seed,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            session_id=body.session,
            ignore_eos=bool(body.ignore_eos),
            return_logprob=bool(body.logprobs) or bool(body.confidence),
            client=call.sender,
            json_schema=response_schema(api, body) if use is None else None,
            grammar=body.grammar,
            tool_use=use,
            owner=call.owner,
        )
        for seed in seeds(body)
    ]
    check_logprobs(api, requests)
    count = len(requests)
    if use is None:
        return served, CompletionJob(api, requests, served.tokenizer, count)
    return served, ToolCallJob(api, requests, served.tokenizer, count, tool_use=use)


def _tool_use(api: Api, served: LoadedModel, body: bodies.Chat) -> ToolUse | None:
    form = tool_format(served.tokenizer.chat_template)
    schema = response_schema(api, body)
    use = tool_use(body, form, schema, open_objects=api.settings.open_objects)
    if use is not None and form.anchored and schema is not None and not use.required:
        message = "tools: this model's calls are JSON like the answer's, and cannot be distinguished from it"
        raise HttpError(400, f"{message}; leave response_format out", param="tools")
    return use


class ChatResponse(ResponseFormat):
    """OpenAI's `chat.completion`."""

    prefix = "chatcmpl"
    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    body: bodies.Chat

    def opening(self, index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, delta: OutputDelta) -> dict[str, Any]:
        calls = [each for each in delta.calls if each.has_news] if isinstance(delta, ToolDelta) else []
        content = {"content": delta.text} if delta.text or (delta.entries and not calls) else {}
        return {
            "index": delta.index,
            "delta": content | ({"tool_calls": [each.json() for each in calls]} if calls else {}),
            "logprobs": self._logprobs(delta.entries) if delta.entries else None,
            "finish_reason": delta.reason,
        }

    def whole(self, deltas: list[OutputDelta]) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls := complete_calls(deltas):
            message |= {"content": text or None, "tool_calls": [each.json() for each in calls]}
        choice: dict[str, Any] = {
            "index": deltas[-1].index,
            "message": message,
            "logprobs": self._logprobs([entry for delta in deltas for entry in delta.entries]),
            "finish_reason": deltas[-1].reason,
        }
        if self.body.confidence:
            choice["synthe"] = {"confidence": confidences(deltas)}
        return choice

    def _logprobs(self, entries: list[OutputToken]) -> dict[str, Any] | None:
        if not self.body.logprobs:
            return None
        ends = self.served.tokenizer.ends
        content = [
            {
                **self._token_logprob(entry.logprob),
                "top_logprobs": [self._token_logprob(logprob) for logprob in entry.top],
            }
            for entry in entries
            if entry.logprob is not None and entry.token not in ends  # the end token is not part of a message
        ]
        return {"content": content, "refusal": None}

    def _token_logprob(self, logprob: Logprob) -> dict[str, Any]:
        tokenizer = self.served.tokenizer
        piece = tokenizer.pieces[logprob.token_id] if logprob.token_id < len(tokenizer.pieces) else b""
        return {
            "token": token_text(tokenizer, logprob.token_id),
            "logprob": finite(logprob.logprob),
            "bytes": list(piece) or None,
        }
