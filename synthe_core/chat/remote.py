"""A conversation with a model behind a running server, over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from synthe_core.chat.conversation import MODEL, SYSTEM, USER, Answer, Asked, Said, Talk
from synthe_core.errors import InputError, SyntheError, WorkError, unknown

REASONS = ("stop", "length")


class ServerTalk(Talk):
    """Talks with `model` of the server at `url`, by default its first; `key` is sent where one is given."""

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
        served = {entry["id"]: entry for entry in self._ask("GET", "/v1/models")["data"]}
        if not served:
            raise InputError(f"{self.url} serves no model")
        if model is not None and model not in served:
            raise unknown("model of this server", model, served)
        found = served[model or next(iter(served))]
        super().__init__(found["id"], bool(found.get("synthe", {}).get("chat_template")), system, session)
        if session is not None and session in self.kept():
            self.load(session)

    def _write(self, said: str, asked: Asked, *, fresh: bool) -> Answer:
        turns = self.turns if fresh else self.turns[-1:]
        body: dict[str, Any] = {
            "model": self.model,
            "session": self.session,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": asked.count,
            "seed": asked.drawn,
            **asked.sampling.model_dump(mode="json", exclude_defaults=True),
        }
        body.setdefault("temperature", asked.sampling.temperature)
        if self.taught:
            path, body["messages"] = "/v1/chat/completions", list(self._messages(fresh))
        else:
            path, body["prompt"] = "/v1/completions", "".join(turn.said + turn.answer for turn in turns)
        text, reason, first, chunks = "", "cancelled", 0.0, 0
        usage: dict[str, Any] = {}
        try:
            with self._connected(), self.client.stream("POST", path, json=body) as response:
                if response.is_error:
                    response.read()
                    raise refused(response)
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
            reason = "cancelled"  # the server sees that nobody listens, and stops
        seconds = time.monotonic() - first if first else 0.0
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        written = usage.get("completion_tokens", chunks)
        kept = reason in REASONS or bool(text) or not fresh  # the server keeps what it had written by then
        return Said(text, reason, written, usage.get("prompt_tokens", 0), cached, seconds, kept)

    def _messages(self, fresh: bool) -> Iterator[dict[str, str]]:
        if fresh and self.system:
            yield {"role": SYSTEM, "content": self.system}
        for turn in self.turns[:-1] if fresh else ():
            yield {"role": USER, "content": turn.said}
            yield {"role": MODEL, "content": turn.answer}
        yield {"role": USER, "content": self.turns[-1].said}

    def kept(self) -> list[str]:
        return [entry["id"] for entry in self._ask("GET", "/api/sessions")["data"] if entry["model"] == self.model]

    def _fork(self, old: str, new: str) -> None:
        self._ask("POST", f"/api/sessions/{_named(old)}/fork", {"to": _named(new)})

    def _forget(self, session: str) -> None:
        self._ask("DELETE", f"/api/sessions/{_named(session)}", missing=True)

    def close(self) -> None:
        super().close()
        self.client.close()

    def _ask(self, method: str, path: str, body: Any = None, *, missing: bool = False) -> Any:
        with self._connected():
            response = self.client.request(method, path, json=body)
        if response.is_error and not (missing and response.status_code == 404):
            raise refused(response)
        return response.json()

    def _connected(self) -> _Connected:
        return _Connected(self.url)


class _Connected:
    """Failures of the line become one line for people."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        if isinstance(error, httpx.ConnectError):
            raise WorkError(f"no server answers at {self.url}", "`synthe serve CHECKPOINT` starts one") from None
        if isinstance(error, httpx.HTTPError):
            said = " ".join(str(error).split()) or type(error).__name__
            raise WorkError(f"the connection to {self.url} failed: {said}") from None


def refused(response: httpx.Response) -> SyntheError:
    """What an answer that is an error says."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {response.status_code}"
    if response.status_code == 401:
        return InputError(message, "put the server's key into SYNTHE_API_KEY, or use --api-key-file")
    kind = InputError if 400 <= response.status_code < 500 and response.status_code != 429 else WorkError
    return kind(message)


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            return
        if data:
            event = json.loads(data)
            if "error" in event:
                raise WorkError(f"the answer failed: {event['error'].get('message')}")
            yield event
    raise WorkError("the server broke off before the answer ended")


def _named(session: str) -> str:
    """A session's name as part of an address."""
    if not session or not all(c.isascii() and (c.isalnum() or c in "_-") for c in session) or not session[0].isalnum():
        raise InputError(f"'{session}' is no name for a conversation", "letters and digits, with - and _ between them")
    return session
