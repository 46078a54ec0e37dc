"""A conversation with a model behind a running server, over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from synthe_core.benchmarks.load_test.event_stream import EventStreamDecoder
from synthe_core.chat.conversation import MODEL, SYSTEM, USER, Answer, ChatOptions, Conversation, Reply
from synthe_core.errors import InputError, SyntheError, WorkError, unknown
from synthe_core.inference.generation_defaults import GenerationDefaults

REASONS = ("stop", "length")


class RemoteConversation(Conversation):
    """A conversation with `model` of the server at `url`, by default its first; `key` is its API key."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        key: str | None = None,
        system: str | None = None,
        session: str | None = None,
    ) -> None:
        address = url if "://" in url else f"http://{url}"
        self.url = address.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            if not httpx.URL(self.url).host:
                raise ValueError("it names no machine")
            self.client = httpx.Client(base_url=self.url, headers=headers, timeout=httpx.Timeout(30, read=600))
        except (httpx.InvalidURL, ValueError) as error:
            raise InputError(f"{url} is no address of a server: {error}", "such as http://127.0.0.1:6900") from None
        served = {entry["id"]: entry for entry in self._request("GET", "/v1/models")["data"]}
        if not served:
            raise InputError(f"{self.url} serves no model")
        if model is not None and model not in served:
            raise unknown("model of this server", model, served)
        entry = served[model or next(iter(served))]
        facts = entry.get("synthe", {})
        self.defaults = GenerationDefaults(facts.get("sampling", {}), facts.get("max_tokens"))
        super().__init__(entry["id"], bool(facts.get("chat_template")), system, session)
        if session is not None and session in self.saved_names():
            self.load(session)

    def _generate(self, message: str, options: ChatOptions, *, fresh: bool) -> Answer:
        turns = self.turns if fresh else self.turns[-1:]
        body: dict[str, Any] = {
            "model": self.model,
            "session": self.session,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": options.max_tokens,
            "seed": options.next_seed,
            **options.sampling.model_dump(mode="json", exclude_defaults=True),
        }
        body.setdefault("temperature", options.sampling.temperature)
        if self.has_chat_template:
            path, body["messages"] = "/v1/chat/completions", list(self._messages(fresh))
        else:
            path, body["prompt"] = "/v1/completions", "".join(turn.message + turn.answer for turn in turns)
        text, reason, first, chunks = "", "cancelled", 0.0, 0
        usage: dict[str, Any] = {}
        try:
            with self._connected(), self.client.stream("POST", path, json=body) as response:
                if response.is_error:
                    response.read()
                    raise error_of(response)
                for event in _events(response):
                    usage = event.get("usage") or usage
                    for choice in event["choices"]:
                        piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
                        chunks += bool(piece)
                        first = first or (time.monotonic() if piece else 0.0)
                        reason = choice.get("finish_reason") or reason
                        text += piece
                        if piece:
                            yield piece
        except KeyboardInterrupt:
            reason = "cancelled"  # the closed connection stops the server
        seconds = time.monotonic() - first if first else 0.0
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        num_tokens = usage.get("completion_tokens", chunks)
        is_saved = reason in REASONS or bool(text) or not fresh  # the server saves what it had generated
        return Reply(text, reason, num_tokens, usage.get("prompt_tokens", 0), cached, seconds, is_saved)

    def _messages(self, fresh: bool) -> Iterator[dict[str, str]]:
        if fresh and self.system:
            yield {"role": SYSTEM, "content": self.system}
        for turn in self.turns[:-1] if fresh else ():
            yield {"role": USER, "content": turn.message}
            yield {"role": MODEL, "content": turn.answer}
        yield {"role": USER, "content": self.turns[-1].message}

    def saved_names(self) -> list[str]:
        return [entry["id"] for entry in self._request("GET", "/api/sessions")["data"] if entry["model"] == self.model]

    def _copy(self, old: str, new: str) -> None:
        self._request("POST", f"/api/sessions/{_path_segment(old)}/fork", {"to": _path_segment(new)})

    def _delete(self, session: str) -> None:
        self._request("DELETE", f"/api/sessions/{_path_segment(session)}", missing=True)

    def close(self) -> None:
        super().close()
        self.client.close()

    def _request(self, method: str, path: str, body: Any = None, *, missing: bool = False) -> Any:
        with self._connected():
            response = self.client.request(method, path, json=body)
        if response.is_error and not (missing and response.status_code == 404):
            raise error_of(response)
        return response.json()

    def _connected(self) -> _Connected:
        return _Connected(self.url)


class _Connected:
    """Errors of the connection as errors of one line."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        if isinstance(error, httpx.ConnectError):
            raise WorkError(f"no server answers at {self.url}", "`synthe serve CHECKPOINT` starts one") from None
        if isinstance(error, httpx.HTTPError):
            message = " ".join(str(error).split()) or type(error).__name__
            raise WorkError(f"the connection to {self.url} failed: {message}") from None


def error_of(response: httpx.Response) -> SyntheError:
    """The error of a response."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {response.status_code}"
    if response.status_code == 401:
        return InputError(message, "put the server's key into SYNTHE_API_KEY, or use --api-key-file")
    kind = InputError if 400 <= response.status_code < 500 and response.status_code != 429 else WorkError
    return kind(message)


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for data in _data(response):
        if data == "[DONE]":
            return
        if data:
            event = json.loads(data)
            if "error" in event:
                raise WorkError(f"the answer failed: {event['error'].get('message')}")
            yield event
    raise WorkError("the server broke off before the answer ended")


def _data(response: httpx.Response) -> Iterator[str]:
    """The data of every server-sent event."""
    decoder = EventStreamDecoder()
    for piece in response.iter_bytes():
        yield from decoder.push(piece)
    yield from decoder.flush()


def _path_segment(session: str) -> str:
    """The session's name as a part of a path; InputError for a name that is not valid."""
    if not session or not all(c.isascii() and (c.isalnum() or c in "_-") for c in session) or not session[0].isalnum():
        raise InputError(f"'{session}' is no name for a conversation", "letters and digits, with - and _ between them")
    return session
