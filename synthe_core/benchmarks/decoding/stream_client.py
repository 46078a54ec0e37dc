"""Clients of an OpenAI-compatible server that stream, in a process of their own: `python stream_client.py`.

It reads a JSON object from stdin: host, port, path and the bodies of the requests, which start together. It writes one
with the seconds to the first token of the slowest, the seconds of a step, and the output tokens. It needs the standard
library only, so that no other code of the process takes part in the figures.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from typing import Any

TIMEOUT = 300.0  # seconds without data


def step_seconds(arrivals: list[list[float]], counts: list[int]) -> float:
    """Seconds of a step in which every stream gets a token, over the time from the first token of the slowest stream to
    the last one of the fastest. arrivals: of chunks with text; counts: the tokens of each stream, several of which may
    come in a chunk. ValueError if the streams never run at the same time."""
    begin, end = max(each[0] for each in arrivals), min(each[-1] for each in arrivals)
    tokens = 0.0
    for each, count in zip(arrivals, counts, strict=True):
        tokens += sum(begin < at <= end for at in each) * count / len(each)
    if end <= begin or not tokens:
        raise ValueError("the streams did not run at the same time: more tokens are needed")
    return (end - begin) / (tokens / len(arrivals))


class Stream(threading.Thread):
    """One request. arrivals: the times of its chunks with text."""

    def __init__(self, host: str, port: int, path: str, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._address, self._path, self._body = (host, port), path, json.dumps(body)
        self.arrivals: list[float] = []
        self.sent, self.tokens, self.error = 0.0, 0, ""

    def run(self) -> None:
        try:
            self._read()
        except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
            self.error = f"{type(error).__name__}: {error}"

    def _read(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT)
        self.sent = time.perf_counter()
        connection.request("POST", self._path, self._body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            self.error = f"HTTP {response.status}: {response.read(300).decode('utf-8', 'replace')}"
            return
        while line := response.readline():
            if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
                continue
            now = time.perf_counter()
            chunk = json.loads(line[5:])
            if any("text" in choice and not choice.get("finish_reason") for choice in chunk.get("choices", ())):
                self.arrivals.append(now)
            if usage := chunk.get("usage"):
                self.tokens = usage["completion_tokens"]
        if not self.arrivals:
            self.error = "the stream has no text"


def main() -> None:
    job = json.load(sys.stdin)
    streams = [Stream(job["host"], job["port"], job["path"], body) for body in job["bodies"]]
    for each in streams:
        each.start()
    for each in streams:
        each.join()
    answer: dict[str, Any] = {"error": next((each.error for each in streams if each.error), "")}
    if not answer["error"]:
        arrivals, counts = [each.arrivals for each in streams], [each.tokens or len(each.arrivals) for each in streams]
        answer["first"] = max(each.arrivals[0] - each.sent for each in streams)
        answer["tokens"] = counts
        try:
            answer["step"] = step_seconds(arrivals, counts) if min(map(len, arrivals)) > 1 else None
        except ValueError as error:
            answer["error"] = str(error)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
