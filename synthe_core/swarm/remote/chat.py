"""A chat completion of another server, streamed in a thread of its own."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthe_core.errors import InputError, SyntheError
from synthe_core.swarm.remote.addresses import Address
from synthe_core.swarm.remote.connection import Connection, RemoteError
from synthe_core.swarm.spec import RemoteSpec, SpecialistSpec

RETRIED = (429, 500, 502, 503, 504, 529)
FIRST_PAUSE = 0.5
"""Seconds before the second try, where the server names none; each later pause is twice as long."""
GRACE = 0.5
"""Seconds beyond the deadline for a name or a connection that hangs, which no socket's limit ends."""
HEADERS = {"Content-Type": "application/json", "Accept": "text/event-stream", "User-Agent": "synthe"}


@dataclass(frozen=True)
class RemoteModel:
    """A model of another server. key: None for none."""

    address: Address
    model: str
    key: str | None

    @classmethod
    def of(cls, name: str, spec: SpecialistSpec) -> RemoteModel:
        """InputError for a URL that is none, a key that is not in the environment, and one that would go unencrypted
        over the internet."""
        assert spec.url is not None and spec.model is not None
        address = Address.parse(spec.url)
        key = None
        if spec.key_from is not None:
            key = os.environ.get(spec.key_from, "").strip()
            if not key:
                raise InputError(f"{name}: the environment has no {spec.key_from}", f"export {spec.key_from}=...")
            if not key.isascii() or not key.isprintable():
                raise InputError(f"{name}: {spec.key_from} is no API key", "it has other characters than ASCII")
            if address.scheme == "http" and not address.is_private:
                raise InputError(f"{name}: the key would go unencrypted to {address.host}", "use https")
        return cls(address, spec.model, key)


class RemoteChat:
    """One answer. Iterating gives its text in pieces until it is whole; RemoteError if it does not become whole.

    It begins at once, in a thread. `cancel` ends it, from any thread. reason: why it ended, as OpenAI says it.
    """

    def __init__(
        self,
        model: RemoteModel,
        messages: Sequence[Mapping[str, str]],
        max_tokens: int,
        temperature: float | None,
        spec: RemoteSpec,
    ) -> None:
        self._model, self._spec = model, spec
        self._deadline = time.monotonic() + spec.total_seconds
        values: dict[str, Any] = {"model": model.model, "messages": list(messages), "max_tokens": max_tokens}
        if temperature is not None:
            values["temperature"] = temperature
        self._body = json.dumps({**values, "stream": True}).encode()
        self._pieces: queue.SimpleQueue[str | SyntheError | None] = queue.SimpleQueue()
        self._ended, self.cancelled = threading.Event(), False
        self._connection: Connection | None = None
        self.text, self.reason = "", ""
        threading.Thread(target=self._run, name="remote", daemon=True).start()

    def __iter__(self) -> Iterator[str]:
        while True:
            left = self._deadline + GRACE - time.monotonic()
            try:
                piece = self._pieces.get(timeout=max(0.0, left))
            except queue.Empty:
                self.close()
                raise RemoteError("the server took too long") from None
            if piece is None:
                return
            if isinstance(piece, SyntheError):
                raise piece
            self.text += piece
            yield piece

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.cancelled = True
        self.close()

    def close(self) -> None:
        """Ends what still runs."""
        self._ended.set()
        if (connection := self._connection) is not None:
            connection.close()

    def _run(self) -> None:
        try:
            self._try()
        except SyntheError as error:
            self._pieces.put(error)
        except Exception as error:  # a defect must not leave somebody waiting
            self._pieces.put(RemoteError(f"the answer could not be read: {type(error).__name__}"))

    def _try(self) -> None:
        """Asks until an answer begins; after that there is no second try."""
        pause = FIRST_PAUSE
        for number in range(self._spec.retries + 1):
            self._connection = connection = Connection(self._spec, self._deadline)
            if self._ended.is_set():
                connection.close()
            try:
                address = self._model.address
                target = Address(address.scheme, address.host, address.port, f"{address.path}/chat/completions")
                content = connection.post(target, self._body, HEADERS, self._model.key)
            except RemoteError as error:
                wait = pause if error.retry_after is None else error.retry_after
                is_last = number == self._spec.retries or error.status not in RETRIED
                if is_last or time.monotonic() + wait > self._deadline or self._ended.wait(wait):
                    raise
                pause *= 2
                continue
            try:
                self._read(content)
            finally:
                connection.close()
            return

    def _read(self, content: Iterator[bytes]) -> None:
        """Passes an answer on, whether it comes as a stream of events or whole."""
        rest, seen = b"", b""
        for piece in content:
            rest += piece
            seen = (seen + piece)[:1] if not seen.strip() else seen
            if seen.strip()[:1] == b"{":
                continue  # a whole answer
            *lines, rest = rest.split(b"\n")
            for line in lines:
                if self._take_line(line):
                    self._pieces.put(None)
                    return
        if seen.strip()[:1] == b"{":
            self._take(_parsed(rest), "message")
        elif rest.strip():
            self._take_line(rest)
        if not self.reason:
            raise RemoteError("the answer ended before it was whole")
        self._pieces.put(None)

    def _take_line(self, line: bytes) -> bool:
        """Takes in a line of an event stream; returns whether it is the last."""
        line = line.strip()
        if not line.startswith(b"data:"):
            if line and not line.startswith((b":", b"event:", b"id:", b"retry:")):
                raise RemoteError("the server sent something that is no event")
            return False
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            if not self.reason:
                raise RemoteError("the answer ended before it was whole")
            return True
        self._take(_parsed(data), "delta")
        return False

    def _take(self, values: Any, part: str) -> None:
        """Takes in a chunk, or a whole answer."""
        if isinstance(values, dict) and values.get("error"):
            raise RemoteError("the server reported an error in its answer")
        try:
            choices = values["choices"]
            for choice in choices:
                text, reason = (choice.get(part) or {}).get("content"), choice.get("finish_reason")
                if text is not None and not isinstance(text, str):
                    raise TypeError
                if text:
                    self._pieces.put(text)
                if reason is not None:
                    self.reason = str(reason)
        except (KeyError, TypeError, AttributeError):
            raise RemoteError("the server sent something that is no answer") from None


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise RemoteError("the server sent something that is no JSON") from None
