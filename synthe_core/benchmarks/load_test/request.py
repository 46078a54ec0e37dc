"""One streamed request to an OpenAI-compatible server, and the times of its parts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from synthe_core.benchmarks.load_test.event_stream import EventStreamDecoder

TOO_MANY_REQUESTS = 429
CANCELLED = "cancelled"
MAX_RETRY_AFTER = 60.0  # seconds


@dataclass
class RequestResult:
    """The result of one request. Times are of `time.perf_counter`; `error` is None if it succeeded.

    gaps:        seconds between one piece of text and the next.
    turned_away: number of 429 responses. The request was sent again after each; its time runs from the first attempt.
    tokens:      the tokens as text, if the request has logprobs.
    """

    client: int
    turn: int
    body: dict[str, Any]
    sent: float = 0.0
    first: float | None = None
    ended: float = 0.0
    gaps: list[float] = field(default_factory=list)
    prompt: int = 0
    cached: int = 0
    written: int = 0
    has_usage: bool = False
    text: str = ""
    tokens: list[str] = field(default_factory=list)
    reason: str | None = None
    error: str | None = None
    message: str = ""
    turned_away: int = 0

    @property
    def seconds(self) -> float:
        return self.ended - self.sent

    @property
    def output(self) -> tuple[str, str | None, list[str]]:
        """The part by which two results are compared."""
        return self.text, self.reason, self.tokens


class Failure(Exception):
    """A failed request: `kind` groups equal failures, `message` is the server's."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(kind)
        self.kind, self.message = kind, " ".join(message.split())[:200]


async def send(http: httpx.AsyncClient, path: str, result: RequestResult) -> None:
    """Sends `result.body` and fills in the other fields. Errors of the server are stored, not raised."""
    result.sent = time.perf_counter()
    try:
        while (wait := await _once(http, path, result)) is not None:
            result.turned_away += 1
            await asyncio.sleep(wait)
    except Failure as failure:
        result.error, result.message = failure.kind, failure.message
    except httpx.TimeoutException:
        result.error = "timeout"
    except httpx.ConnectError as error:
        result.error, result.message = "not reached", str(error)
    except httpx.HTTPError as error:
        result.error, result.message = "cut off", str(error) or type(error).__name__
    except asyncio.CancelledError:
        result.error = CANCELLED
        raise
    finally:
        result.ended = time.perf_counter()


async def _once(http: httpx.AsyncClient, path: str, result: RequestResult) -> float | None:
    """One attempt. Returns the seconds to wait before the next one after a 429."""
    async with http.stream("POST", path, json=result.body) as response:
        if response.status_code == TOO_MANY_REQUESTS:
            await response.aread()
            return _retry_after(response)
        if response.status_code != 200:
            raise Failure(f"HTTP {response.status_code}", error_message(await response.aread()))
        ended = False
        async for data in _events(response):
            ended = data == "[DONE]"
            if not ended:
                _add_chunk(result, data)
    if not ended and result.reason is None:
        raise Failure("cut off", "the stream ended early")
    return None


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    """The data of every server-sent event."""
    decoder = EventStreamDecoder()
    async for piece in response.aiter_bytes():
        for data in decoder.push(piece):
            yield data
    for data in decoder.flush():
        yield data


def _add_chunk(result: RequestResult, data: str) -> None:
    """Adds a chunk: new text, or the token counts at the end."""
    now = time.perf_counter()
    try:
        piece = json.loads(data)
        if "error" in piece:
            raise Failure("error in the stream", error_message(data.encode()))
        choices = piece.get("choices") or [{}]
        text, names, reason = _parse_choice(choices[0])
        usage = piece.get("usage")
    except (ValueError, AttributeError, TypeError, KeyError, LookupError):
        raise Failure("malformed", data) from None
    if text or names:
        if result.first is None:
            result.first = now
        else:
            result.gaps.append(now - result.ended)
        result.ended = now
        result.text += text
        result.tokens += names
        result.written += 0 if result.has_usage else 1
    result.reason = reason or result.reason
    if isinstance(usage, dict):
        result.has_usage = True
        result.prompt, result.written = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        result.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _parse_choice(choice: dict[str, Any]) -> tuple[str, list[str], str | None]:
    """The text of a chunk, its tokens if they are returned, and the finish reason."""
    delta = choice.get("delta") or {}
    text = choice.get("text") or delta.get("content") or delta.get("reasoning_content") or ""
    logprobs = choice.get("logprobs") or {}
    names = logprobs.get("tokens") or [each["token"] for each in logprobs.get("content") or []]
    return text, names, choice.get("finish_reason")


def error_message(content: bytes) -> str:
    """The message of an error in OpenAI's format, or the start of the response."""
    try:
        error = json.loads(content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return content[:200].decode("utf-8", "replace")


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(MAX_RETRY_AFTER, max(0.05, float(response.headers.get("retry-after", 1))))
    except ValueError:
        return 1.0
