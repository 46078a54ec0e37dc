"""A completion job: one HTTP request as requests to the engine, and the output that can be sent so far."""

from __future__ import annotations

import asyncio
import secrets
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from pydantic import ValidationError

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import SyntheError
from synthe_core.inference.generation_defaults import GenerationDefaults
from synthe_core.inference.outputs import Finished, Logprob, Output, PrefillFinished, PromptLogprob, TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.serving.api import bodies
from synthe_core.serving.api.context import Api
from synthe_core.serving.api.errors import HttpError, http_error, invalid

MIN_LOGPROB = -9999.0
"""Replaces -inf, which JSON cannot represent."""
TAIL_TOKENS, MAX_TAILS = 64, 10_000  # last tokens stored per session, and the number of sessions
STATUS = {"refused": 400, "error": 500}
REASONS = {"stop": "stop", "length": "length", "cancelled": "length", "shutdown": "length"}


def sampling(body: bodies.GenerationBody, defaults: GenerationDefaults) -> SamplingParams:
    """The sampling parameters of a request, with those of its model where it has none."""
    values: dict[str, Any] = {
        "temperature": body.temperature,
        "top_k": None if body.top_k is None else max(0, body.top_k),
        "top_p": body.top_p,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "logit_bias": {int(token): bias for token, bias in body.logit_bias.items()} if body.logit_bias else None,
    }
    try:
        return defaults.apply({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise invalid(error, type(body)) from None


def seeds(body: bodies.GenerationBody) -> list[int]:
    """A seed for each choice of a prompt; random if the request has none."""
    first = secrets.randbits(62) if body.seed is None else body.seed
    return [(first + i) % 2**62 for i in range(body.n or 1)]


@dataclass
class OutputToken:
    """An output token. text_offset: where its text begins in the text of the choice, in characters."""

    token: int
    text_offset: int
    logprob: Logprob | None
    top: tuple[Logprob, ...]
    confidence: float | None = None


@dataclass
class OutputDelta:
    """New output of a choice. reason: the finish reason, in its last delta."""

    index: int
    text: str
    entries: list[OutputToken]
    reason: str | None = None
    failure: HttpError | None = None

    @property
    def confidence(self) -> float | None:
        """The lowest confidence of its tokens."""
        return min((entry.confidence for entry in self.entries if entry.confidence is not None), default=None)


class Choice:
    """One choice of the response. A token is sent together with its text, which may be complete only later."""

    def __init__(self, index: int, tokenizer: Tokenizer, echo: str | None) -> None:
        self.index, self.tokenizer, self.echo = index, tokenizer, echo
        self.decoder = tokenizer.decoder()
        self.num_decoded_chars = 0  # in all tokens so far
        self.num_sent_chars = 0
        self.pending: deque[OutputToken] = deque()
        self.usage: Finished | None = None

    def push(self, event: Output) -> OutputDelta | None:
        """The output that can be sent after `event`; None if there is none."""
        match event:
            case PromptLogprob(token, logprob, top):
                self.pending.append(OutputToken(token, self.num_decoded_chars, logprob, top))
                self.num_decoded_chars += len(self.decoder.push(token))
            case TokenOutput(token, text, logprob, top, confidence):
                before = self._take_echo()
                self.pending.append(OutputToken(token, self.num_decoded_chars, logprob, top, confidence))
                self.num_decoded_chars += len(self.decoder.push(token))
                return self._delta(before + text)
            case Finished(reason, text):
                self.usage = event
                delta = self._delta(self._take_echo() + text, last=reason) or OutputDelta(self.index, "", [])
                delta.reason = REASONS.get(reason)
                if status := STATUS.get(reason):
                    delta.failure = HttpError(status, event.message or "the request failed")
                return delta
        return None

    def _take_echo(self) -> str:
        """The prompt if it is echoed, once; the output after it is decoded separately."""
        echo, self.echo = self.echo, None
        if echo is None:
            return ""
        self.num_decoded_chars, self.decoder = len(echo), self.tokenizer.decoder()
        for entry in self.pending:  # decoding its tokens may give a longer text
            entry.text_offset = min(entry.text_offset, len(echo))
        return echo

    def _delta(self, text: str, last: str | None = None) -> OutputDelta | None:
        self.num_sent_chars += len(text)
        entries = []
        while self.pending and (
            self.pending[0].text_offset < self.num_sent_chars or last == "length" or self._ends(last)
        ):
            entries.append(self.pending.popleft())
        return OutputDelta(self.index, text, entries) if text or entries else None

    def _ends(self, reason: str | None) -> bool:
        """Whether the text ended with an end token, and not at a stop string, whose tokens are not sent."""
        return reason == "stop" and self.pending[-1].token in self.tokenizer.ends


@dataclass
class Usage:
    """Token counts. A prompt counts once, however many choices it has."""

    prompt: int = 0
    cached: int = 0
    written: int = 0

    def json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.written,
            "total_tokens": self.prompt + self.written,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass
class CompletionJob:
    """The engine requests of one HTTP request, `per_prompt` for each prompt, with their events in one queue.

    As a context manager it cancels the unfinished requests at its end.
    """

    api: Api
    requests: Sequence[Request]
    tokenizer: Tokenizer
    per_prompt: int = 1
    echoes: Sequence[str | None] | None = None
    handles: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()
        echoes = self.echoes or [None] * len(self.requests)
        self.choices = [Choice(i, self.tokenizer, echo) for i, echo in enumerate(echoes)]
        self.tokens: list[list[int]] = [[] for _ in self.requests]
        self._cancelled = False
        self._started = time.monotonic()
        self._last = [0.0] * len(self.requests)

    async def begin(self) -> Self:
        """Submits all requests. On an error none remains submitted, and the error is raised as HttpError."""
        if self.api.closing:
            raise HttpError(503, "the server is shutting down", headers={"Retry-After": "5"})
        try:
            for index, request in enumerate(self.requests):
                submit = partial(self._submit, index)
                if request.json_schema is None:
                    submit()
                else:
                    await self.api.in_thread(submit)  # which compiles it
        except BaseException as error:
            self.cancel()
            raise http_error(error) if isinstance(error, SyntheError) else error from None
        return self

    def _submit(self, index: int) -> None:
        """Submits one request, from any thread. It is cancelled at once if the job was cancelled."""
        handle = self.api.engine.submit(self.requests[index], partial(self._deliver, index))
        self.handles.append(handle)
        if self._cancelled:
            handle.cancel()

    def _deliver(self, index: int, event: Output) -> None:
        """Puts an event of the engine's thread into the queue."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        self._cancelled = True
        for handle, choice in zip(self.handles, self.choices, strict=False):
            if choice.usage is None:
                handle.cancel()
                self.api.metrics.finished.labels(handle.request.model, "cancelled").inc()
        self.handles = []

    async def deltas(self) -> AsyncIterator[OutputDelta]:
        """New output of any choice, until all choices have ended."""
        left = len(self.requests)
        while left:
            index, event = await self._events.get()
            self._measure(index, event)
            if (delta := self.choices[index].push(event)) is not None:
                left -= isinstance(event, Finished)
                yield delta

    def _measure(self, index: int, event: Output) -> None:
        metrics, model = self.api.metrics, self.requests[index].model
        now = time.monotonic()
        if isinstance(event, TokenOutput):
            self.tokens[index].append(event.token_id)
            last, self._last[index] = self._last[index], now
            if last:
                metrics.between.labels(model).observe(now - last)
            else:
                metrics.first.labels(model).observe(now - self._started)
        elif isinstance(event, PrefillFinished):
            metrics.prompt.labels(model).inc(event.num_prompt_tokens)
            metrics.cached.labels(model).inc(event.num_cached_tokens)
        elif isinstance(event, Finished):
            metrics.written.labels(model).inc(event.num_output_tokens)
            metrics.finished.labels(model, event.reason).inc()

    def usage(self) -> Usage:
        usage = Usage()
        for index, choice in enumerate(self.choices):
            if choice.usage is not None:
                usage.written += choice.usage.num_output_tokens
                if index % self.per_prompt == 0:
                    usage.prompt += choice.usage.num_prompt_tokens
                    usage.cached += choice.usage.num_cached_tokens
        return usage

    def record_last_output(self) -> None:
        """Stores the tokens of the last choice, for its inspection, and the end of its text, for the next turn."""
        request, tokens, tails = self.requests[-1], self.tokens[-1], self.api.tails
        self.api.last_tokens[request.owner, request.model] = array("i", (*request.prompt_token_ids, *tokens))
        if request.session_id is not None:
            key = (request.owner, request.session_id)
            tails.pop(key, None)
            tails[key] = tail(self.tokenizer, tokens)
            own = [each for each in tails if each[0] == request.owner] if len(tails) > MAX_TAILS else []
            for each in own[: len(tails) - MAX_TAILS]:
                del tails[each]


def tail(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The last tokens of a text, with special tokens spelled out."""
    pieces = (tokenizer.bytes_of([token]) or tokenizer.spelling(token).encode() for token in tokens[-TAIL_TOKENS:])
    return b"".join(pieces).decode("utf-8", "replace")


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as text: its text, its name, or its bytes if they are not valid UTF-8."""
    piece = tokenizer.pieces[token] if token < len(tokenizer.pieces) else b""
    if not piece:
        return (tokenizer.spelling(token) if token < tokenizer.vocab_size else "") or f"<{token}>"
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def finite(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)
