"""One request to an OpenAI-compatible server, streamed, with the times at which its parts came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

TURNED_AWAY = 429
GIVEN_UP = "given up"
PATIENCE = 60.0  # seconds that a server may ask to be left alone for


@dataclass
class Answer:
    """What became of one request. Times are of `time.perf_counter`; `error` is None where all went well.

    gaps:        seconds between one piece of text and the next.
    turned_away: how often the server was too busy; the request was sent again when it said so, and its time runs from
                 the first attempt.
    tokens:      the tokens by name, where the request asked for logprobs.
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
    told_usage: bool = False
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
    def said(self) -> tuple[str, str | None, list[str]]:
        """By which two answers are compared."""
        return self.text, self.reason, self.tokens


class Failure(Exception):
    """A request that failed: `kind` groups those that failed alike, `message` is what the server said."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(kind)
        self.kind, self.message = kind, " ".join(message.split())[:200]


async def ask(http: httpx.AsyncClient, path: str, answer: Answer) -> None:
    """Sends `answer.body` and fills in the rest; never raises for what a server does."""
    answer.sent = time.perf_counter()
    try:
        while (wait := await _once(http, path, answer)) is not None:
            answer.turned_away += 1
            await asyncio.sleep(wait)
    except Failure as failure:
        answer.error, answer.message = failure.kind, failure.message
    except httpx.TimeoutException:
        answer.error = "timeout"
    except httpx.ConnectError as error:
        answer.error, answer.message = "not reached", str(error)
    except httpx.HTTPError as error:
        answer.error, answer.message = "cut off", str(error) or type(error).__name__
    except asyncio.CancelledError:
        answer.error = GIVEN_UP
        raise
    finally:
        answer.ended = time.perf_counter()


async def _once(http: httpx.AsyncClient, path: str, answer: Answer) -> float | None:
    """One attempt; the seconds to wait before another where the server has no room now."""
    async with http.stream("POST", path, json=answer.body) as response:
        if response.status_code == TURNED_AWAY:
            await response.aread()
            return _retry_after(response)
        if response.status_code != 200:
            raise Failure(f"HTTP {response.status_code}", told(await response.aread()))
        ended = False
        async for data in _events(response):
            ended = data == "[DONE]"
            if not ended:
                _take(answer, data)
    if not ended and answer.reason is None:
        raise Failure("cut off", "the stream ended before the answer did")
    return None


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    """What comes after `data:`, of a stream of server-sent events."""
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            yield line[5:].strip()


def _take(answer: Answer, data: str) -> None:
    """A piece of the answer, or the counts at its end."""
    now = time.perf_counter()
    try:
        piece = json.loads(data)
        if "error" in piece:
            raise Failure("error in the stream", told(data.encode()))
        choices = piece.get("choices") or [{}]
        text, names, reason = _said(choices[0])
        usage = piece.get("usage")
    except (ValueError, AttributeError, TypeError, KeyError, LookupError):
        raise Failure("malformed", data) from None
    if text or names:
        if answer.first is None:
            answer.first = now
        else:
            answer.gaps.append(now - answer.ended)
        answer.ended = now
        answer.text += text
        answer.tokens += names
        answer.written += 0 if answer.told_usage else 1
    answer.reason = reason or answer.reason
    if isinstance(usage, dict):
        answer.told_usage = True
        answer.prompt, answer.written = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        answer.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _said(choice: dict[str, Any]) -> tuple[str, list[str], str | None]:
    """The text of a piece, the names of its tokens where they are told, and why the answer ends if it does."""
    delta = choice.get("delta") or {}
    text = choice.get("text") or delta.get("content") or delta.get("reasoning_content") or ""
    logprobs = choice.get("logprobs") or {}
    names = logprobs.get("tokens") or [each["token"] for each in logprobs.get("content") or []]
    return text, names, choice.get("finish_reason")


def told(content: bytes) -> str:
    """The message of an error in OpenAI's shape, or whatever else was said."""
    try:
        error = json.loads(content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return content[:200].decode("utf-8", "replace")


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(PATIENCE, max(0.05, float(response.headers.get("retry-after", 1))))
    except ValueError:
        return 1.0
