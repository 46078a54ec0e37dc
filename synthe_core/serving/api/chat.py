"""POST /v1/chat/completions: the next message of a conversation."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from synthe_core.inference.outputs import Logprob
from synthe_core.inference.request import Request
from synthe_core.serving.api import bodies, prompts
from synthe_core.serving.api.completion_job import (
    CompletionJob,
    OutputDelta,
    OutputToken,
    finite,
    sampling,
    seeds,
    token_text,
)
from synthe_core.serving.api.completions import check_counts, check_logprobs, note_prompts
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.response_format import ResponseFormat, confidences


async def chat_completions(api: Api, call: Call, body: bodies.Chat) -> Response:
    """Generates the next message, with `n` choices."""
    served = api.served(body.model, call.owner)
    if None not in (body.max_completion_tokens, body.max_tokens) and body.max_completion_tokens != body.max_tokens:
        raise HttpError(400, "max_tokens: differs from max_completion_tokens, which replaces it")
    count = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    check_counts(api, body, 1, count)
    continues = api.has_session(body.session, call.owner)
    tails = prompts.tails_of(api, served, call.owner, body.session) if continues else None
    prompt = await prompts.conversation(api, served, body.messages, tails=tails)
    if count is None:  # as long as it may be
        limits = (api.settings.max_tokens, api.max_length(served) - len(prompt.tokens), served.defaults.max_tokens)
        count = max(1, min(limit for limit in limits if limit is not None))
    note_prompts(api, [prompt.text])
    requests = [
        Request(
            body.model,
            prompt.tokens,
            max_tokens=count,
            sampling=sampling(body, served.defaults),
            stop=(*body.stops, *prompt.stop),
            seed=seed,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            session_id=body.session,
            ignore_eos=bool(body.ignore_eos),
            return_logprob=bool(body.logprobs) or bool(body.confidence),
            client=call.sender,
            json_schema=body.response_schema,
            owner=call.owner,
        )
        for seed in seeds(body)
    ]
    check_logprobs(api, requests)
    job = CompletionJob(api, requests, served.tokenizer, len(requests))
    return await ChatResponse(body, served).respond(call, job)


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
        return {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text or delta.entries else {},
            "logprobs": self._logprobs(delta.entries) if delta.entries else None,
            "finish_reason": delta.reason,
        }

    def whole(self, deltas: list[OutputDelta]) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        choice: dict[str, Any] = {
            "index": deltas[-1].index,
            "message": {"role": "assistant", "content": text, "refusal": None},
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
