"""POST /v1/completions: text completions of prompts or token lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import Logprob
from synthe_core.inference.request import Request
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
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.response_format import ResponseFormat, confidences

DEFAULT_COUNT = 16


async def completions(api: Api, call: Call, body: bodies.Completion) -> Response:
    """Completes every prompt, with `n` choices each."""
    served = api.served(body.model, call.owner)
    texts = several(body.prompt)
    check_counts(api, body, len(texts))
    continues = api.has_session(body.session, call.owner)
    reading = prompts.Reading(body.truncate_prompt_tokens, begins=body.add_special_tokens)
    read = [await prompts.completion(api, served, text, reading, continues=continues) for text in texts]
    note_prompts(api, [prompt.text for prompt in read])
    counts = [output_limit(api, call, served, body, len(prompt.tokens), DEFAULT_COUNT) for prompt in read]
    requests = [
        Request(
            body.model,
            prompt.tokens,
            max_tokens=count,
            sampling=sampling(body, served.defaults),
            min_tokens=min(body.min_tokens or 0, count),
            stop=body.stops,
            stop_token_ids=tuple(body.stop_token_ids or ()),
            seed=seed,
            logprobs=body.logprobs,
            prompt_logprobs=bool(body.echo) and body.logprobs is not None,
            session_id=body.session,
            ignore_eos=bool(body.ignore_eos),
            return_logprob=body.logprobs is not None or bool(body.confidence),
            client=call.sender,
            json_schema=response_schema(api, body),
            grammar=body.grammar,
            owner=call.owner,
        )
        for prompt, count in zip(read, counts, strict=True)
        for seed in seeds(body)
    ]
    check_logprobs(api, requests)
    echoes: list[str | None] = [None] * len(requests)
    if body.echo:
        n = body.n or 1
        echoes = [
            await prompts.decoded(api, served, prompt.tokens) if prompt.text is None else prompt.text
            for prompt in read
            for _ in range(n)
        ]
    job = CompletionJob(api, requests, served.tokenizer, body.n or 1, echoes)
    return await CompletionResponse(body, served).respond(call, job)


def several(prompt: str | list[Any]) -> list[Any]:
    """The list of prompts in a field that has one or several."""
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


def check_counts(api: Api, body: bodies.GenerationBody, prompt_count: int) -> None:
    """Raises HttpError for more choices than the server allows."""
    settings, n = api.settings, body.n or 1
    if n > settings.max_n:
        raise HttpError(400, f"n: {n} choices requested; this server allows at most {settings.max_n}", param="n")
    if n * prompt_count > settings.max_choices:
        raise HttpError(400, f"{n * prompt_count} choices requested; this server allows at most {settings.max_choices}")
    if body.session is not None and n * prompt_count > 1:
        raise HttpError(400, "session: a conversation takes one prompt and one choice", param="session")


def check_logprobs(api: Api, requests: Sequence[Request]) -> None:
    """Raises HttpError for more log-probabilities than the server answers with."""
    most, count = api.settings.max_logprobs, 0
    for request in requests:
        if request.logprobs is not None:
            tokens = request.max_tokens + (len(request.prompt_token_ids) if request.prompt_logprobs else 0)
            count += tokens * (1 + request.logprobs)
    if count > most:
        raise HttpError(
            400,
            f"logprobs: {count:,} of them requested (choices x tokens x logprobs); this server allows at most {most:,}",
            param="logprobs",
        )


def output_limit(
    api: Api, call: Call, served: LoadedModel, body: bodies.GenerationBody, num_prompt_tokens: int, default: int
) -> int:
    """The maximum number of tokens of a choice. More than the server allows is cut, and a header says so."""
    most, count = api.settings.max_tokens, body.count
    if count is None:  # as many as fit, or one too many, which the engine refuses
        return max(1, min(default, most, api.max_length(served) - num_prompt_tokens))
    if count > most:
        call.add_notice(f"max_tokens was cut to {most}, the maximum of this server")
        return most
    return count


def note_prompts(api: Api, texts: list[str | None]) -> None:
    """Logs the prompts if the server was started with --log-prompts."""
    if api.settings.log_prompts:
        for text in texts:
            api.settings.log(f"prompt: {text!r}")


class CompletionResponse(ResponseFormat):
    """OpenAI's `text_completion`."""

    prefix = "cmpl"
    whole_kind = chunk_kind = "text_completion"
    body: bodies.Completion

    def opening(self, index: int) -> None:
        return None

    def chunk(self, delta: OutputDelta) -> dict[str, Any]:
        return {
            "index": delta.index,
            "text": delta.text,
            "logprobs": self._logprobs(delta.entries),
            "finish_reason": delta.reason,
        }

    def whole(self, deltas: list[OutputDelta]) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        entries = [entry for delta in deltas for entry in delta.entries]
        choice = self.chunk(OutputDelta(deltas[-1].index, text, entries, deltas[-1].reason))
        if self.body.confidence:
            choice["synthe"] = {"confidence": confidences(deltas)}
        return choice

    def _logprobs(self, entries: list[OutputToken]) -> dict[str, Any] | None:
        """`text_offset` counts characters of the choice's text."""
        if self.body.logprobs is None:
            return None
        spelled = self._spelled
        return {
            "tokens": [spelled(entry.token) for entry in entries],
            "token_logprobs": [None if entry.logprob is None else finite(entry.logprob.logprob) for entry in entries],
            "top_logprobs": [
                None if entry.logprob is None else self._top(entry.logprob, entry.top) for entry in entries
            ],
            "text_offset": [entry.text_offset for entry in entries],
        }

    def _top(self, own: Logprob, top: tuple[Logprob, ...]) -> dict[str, float]:
        """The most likely tokens and the actual one. Of two tokens with the same text, the more likely one counts."""
        logprobs: dict[str, float] = {}
        for logprob in (*top, own):
            logprobs.setdefault(self._spelled(logprob.token_id), finite(logprob.logprob))
        return logprobs

    def _spelled(self, token: int) -> str:
        return token_text(self.served.tokenizer, token)
