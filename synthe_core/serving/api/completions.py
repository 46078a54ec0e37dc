"""POST /v1/completions: texts that go on from texts or tokens."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from synthe_core.inference.outputs import Logprob
from synthe_core.inference.request import Request
from synthe_core.serving.api import bodies, prompts
from synthe_core.serving.api.answers import Answer, confidences
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.errors import Refusal
from synthe_core.serving.api.writing import Delta, Entry, Work, finite, sampling, seeds, token_text

DEFAULT_COUNT = 16


async def completions(api: Api, call: Call, body: bodies.Completion) -> Response:
    """Goes on from every prompt, `n` times each."""
    served = api.served(body.model)
    texts = several(body.prompt)
    check_counts(api, body, len(texts), body.max_tokens)
    goes_on = api.has_session(body.session)
    read = [await prompts.completion(api, served, text, goes_on=goes_on) for text in texts]
    note_prompts(api, [prompt.text for prompt in read])
    requests = [
        Request(
            body.model,
            prompt.tokens,
            max_tokens=DEFAULT_COUNT if body.max_tokens is None else body.max_tokens,
            sampling=sampling(body),
            stop=body.stops,
            seed=seed,
            logprobs=body.logprobs,
            prompt_logprobs=bool(body.echo) and body.logprobs is not None,
            session_id=body.session,
            ignore_eos=bool(body.ignore_eos),
        )
        for prompt in read
        for seed in seeds(body)
    ]
    echoes: list[str | None] = [None] * len(requests)
    if body.echo:
        n = body.n or 1
        echoes = [
            served.tokenizer.decode(prompt.tokens) if prompt.text is None else prompt.text
            for prompt in read
            for _ in range(n)
        ]
    work = Work(api, requests, served.tokenizer, body.n or 1, echoes)
    return await TextAnswer(body, served).respond(call, work)


def several(prompt: str | list[Any]) -> list[Any]:
    """The prompts, of one prompt or many."""
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


def check_counts(api: Api, body: bodies.Writing, prompt_count: int, count: int | None) -> None:
    """Refuses more answers than the server gives, or longer ones."""
    settings, n = api.settings, body.n or 1
    if n > settings.max_n:
        raise Refusal(400, f"n: {n} answers are asked for, and this server gives at most {settings.max_n}", param="n")
    if n * prompt_count > settings.max_choices:
        raise Refusal(
            400, f"{n * prompt_count} answers are asked for, and this server gives at most {settings.max_choices}"
        )
    if count is not None and count > settings.max_tokens:
        raise Refusal(400, f"max_tokens: {count} are asked for, and this server writes at most {settings.max_tokens}")
    if body.session is not None and n * prompt_count > 1:
        raise Refusal(400, "session: a conversation goes on with one prompt and one answer", param="session")


def note_prompts(api: Api, texts: list[str | None]) -> None:
    """Where the log is to hold prompts."""
    if api.settings.log_prompts:
        for text in texts:
            api.settings.log(f"prompt: {text!r}")


class TextAnswer(Answer):
    """OpenAI's `text_completion`."""

    prefix = "cmpl"
    whole_kind = chunk_kind = "text_completion"
    body: bodies.Completion

    def opening(self, index: int) -> None:
        return None

    def chunk(self, delta: Delta) -> dict[str, Any]:
        return {
            "index": delta.index,
            "text": delta.text,
            "logprobs": self._logprobs(delta.entries),
            "finish_reason": delta.reason,
        }

    def whole(self, deltas: list[Delta]) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        entries = [entry for delta in deltas for entry in delta.entries]
        choice = self.chunk(Delta(deltas[-1].index, text, entries, deltas[-1].reason))
        if self.body.confidence:
            choice["synthe"] = {"confidence": confidences(deltas)}
        return choice

    def _logprobs(self, entries: list[Entry]) -> dict[str, Any] | None:
        """`text_offset` counts characters of the choice's text."""
        if self.body.logprobs is None:
            return None
        spelled = self._spelled
        return {
            "tokens": [spelled(entry.token) for entry in entries],
            "token_logprobs": [None if entry.chance is None else finite(entry.chance.logprob) for entry in entries],
            "top_logprobs": [None if entry.chance is None else self._top(entry.chance, entry.top) for entry in entries],
            "text_offset": [entry.at for entry in entries],
        }

    def _top(self, own: Logprob, top: tuple[Logprob, ...]) -> dict[str, float]:
        """The likeliest tokens and the one that stands there; of two that are spelled alike, the likelier."""
        found: dict[str, float] = {}
        for chance in (*top, own):
            found.setdefault(self._spelled(chance.token_id), finite(chance.logprob))
        return found

    def _spelled(self, token: int) -> str:
        return token_text(self.served.tokenizer, token)
