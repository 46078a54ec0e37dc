"""A completion job: the choices of one HTTP request, and the output that can be sent so far."""

from __future__ import annotations

import secrets
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.inference.generation_defaults import GenerationDefaults
from synthe_core.inference.outputs import Finished, Logprob, Output, PrefillFinished, PromptLogprob, TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.serving.api import bodies
from synthe_core.serving.api.closed_objects import closed
from synthe_core.serving.api.context import Api
from synthe_core.serving.api.engine_job import EngineJob, failure_of
from synthe_core.serving.api.errors import HttpError, invalid

MIN_LOGPROB = -9999.0
"""Replaces -inf, which JSON cannot represent."""
TAIL_TOKENS, MAX_TAILS = 64, 10_000  # last tokens stored per session, and the number of sessions
REASONS = {"stop": "stop", "length": "length", "cancelled": "length", "shutdown": "length"}


def sampling_values(body: bodies.GenerationBody) -> dict[str, Any]:
    """The sampling parameters that a request gives, by name."""
    values: dict[str, Any] = {
        "temperature": body.temperature,
        "top_k": None if body.top_k is None else max(0, body.top_k),
        "top_p": body.top_p,
        "min_p": body.min_p,
        "repetition_penalty": body.repeat_penalty if body.repetition_penalty is None else body.repetition_penalty,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "logit_bias": {int(token): bias for token, bias in body.logit_bias.items()} if body.logit_bias else None,
    }
    return {key: value for key, value in values.items() if value is not None}


def sampling(body: bodies.GenerationBody, defaults: GenerationDefaults) -> SamplingParams:
    """The sampling parameters of a request, with those of its model where it has none."""
    try:
        return defaults.apply(sampling_values(body))
    except ValidationError as error:
        raise invalid(error, type(body)) from None


def seeds(body: bodies.GenerationBody) -> list[int]:
    """A seed for each choice of a prompt, of 64 bits with a sign; random if the request has none."""
    first = secrets.randbits(63) if body.seed is None else body.seed
    return [(first + i + 2**63) % 2**64 - 2**63 for i in range(body.n or 1)]


def response_schema(api: Api, body: bodies.GenerationBody) -> Mapping[str, Any] | None:
    """The JSON Schema of a request's output, its objects closed unless the server leaves them open."""
    schema = body.response_schema
    return schema if schema is None or api.settings.open_objects else closed(schema)


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

    def __init__(self, index: int, request: Request, tokenizer: Tokenizer, echo: str | None) -> None:
        self.index, self.tokenizer, self.echo = index, tokenizer, echo
        self.ends = {*tokenizer.ends, *request.stop_token_ids}
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
                delta.failure = failure_of(event)
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
        return reason == "stop" and self.pending[-1].token in self.ends


@dataclass
class Usage:
    """Token counts. A prompt counts once, however many choices it has. drafted, accepted: of speculative decoding."""

    prompt: int = 0
    cached: int = 0
    written: int = 0
    drafted: int = 0
    accepted: int = 0

    def json(self) -> dict[str, Any]:
        counts: dict[str, Any] = {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.written,
            "total_tokens": self.prompt + self.written,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }
        if self.drafted:
            counts["completion_tokens_details"] = {
                "accepted_prediction_tokens": self.accepted,
                "rejected_prediction_tokens": self.drafted - self.accepted,
            }
        return counts

    def __str__(self) -> str:
        drafts = f", {self.accepted} of {self.drafted} drafted" if self.drafted else ""
        return f"{self.prompt} ({self.cached} cached) + {self.written} tokens{drafts}"


@dataclass
class CompletionJob(EngineJob):
    """The engine requests of one HTTP request, `per_prompt` for each prompt, with their output as choices."""

    tokenizer: Tokenizer
    per_prompt: int = 1
    echoes: Sequence[str | None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        echoes = self.echoes or [None] * len(self.requests)
        pairs = zip(self.requests, echoes, strict=True)
        self.choices = [Choice(i, request, self.tokenizer, echo) for i, (request, echo) in enumerate(pairs)]
        self.tokens: list[list[int]] = [[] for _ in self.requests]
        self._last = [0.0] * len(self.requests)
        self._prefilled: dict[int, PrefillFinished] = {}

    async def deltas(self) -> AsyncIterator[OutputDelta]:
        """New output of any choice, until all choices have ended."""
        async for index, event in self.events():
            self._measure(index, event)
            if (delta := self.choices[index].push(event)) is not None:
                yield delta

    def _measure(self, index: int, event: Output) -> None:
        metrics, owner, model = self.api.metrics, self.requests[index].owner, self.requests[index].model
        now = time.monotonic()
        if isinstance(event, TokenOutput):
            self.tokens[index].append(event.token_id)
            last, self._last[index] = self._last[index], now
            if last:
                metrics.observe(owner, "time_between_tokens", model, seconds=now - last)
            else:
                metrics.observe(owner, "time_to_first_token", model, seconds=now - self.started)
        elif isinstance(event, PrefillFinished):
            self._prefilled[index] = event
        elif isinstance(event, Finished):
            metrics.add(owner, "written_tokens", model, by=event.num_output_tokens)
            if event.num_drafted_tokens:
                metrics.add(owner, "drafted_tokens", model, by=event.num_drafted_tokens)
                metrics.add(owner, "accepted_tokens", model, by=event.num_accepted_tokens)

    def usage(self) -> Usage:
        usage = Usage()
        for index, choice in enumerate(self.choices):
            if choice.usage is not None:
                usage.written += choice.usage.num_output_tokens
                usage.drafted += choice.usage.num_drafted_tokens
                usage.accepted += choice.usage.num_accepted_tokens
                if index % self.per_prompt == 0:
                    usage.prompt += choice.usage.num_prompt_tokens
                    usage.cached += choice.usage.num_cached_tokens
        return usage

    def usage_so_far(self) -> Usage:
        """Before the end."""
        usage = Usage(written=sum(map(len, self.tokens)))
        for index, event in self._prefilled.items():
            if index % self.per_prompt == 0:
                usage.prompt += event.num_prompt_tokens
                usage.cached += event.num_cached_tokens
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
