"""A local server of OpenAI's protocol that behaves as a test says: well, slowly, wrongly, or half."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = ["The capital", " of Australia", " is Canberra."]


class Mock:
    """Serves `behaviour(handler, number of the request)`. requests: (path, headers, body) of each so far."""

    def __init__(self, behaviour: Callable[[Any, int], None]) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.behaviour, self.released = behaviour, threading.Event()
        mock = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                mock.requests.append((self.path, dict(self.headers), body))
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client has left
                    mock.behaviour(self, len(mock.requests))

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Mock:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


def begin(handler: Any, status: int = 200, content: str = "text/event-stream", **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", content)
    handler.send_header("Connection", "close")
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def chunk(handler: Any, text: str | None = None, reason: str | None = None) -> None:
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": reason}
    handler.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
    handler.wfile.flush()


def whole(handler: Any, _: int = 1, reason: str = "stop") -> None:
    begin(handler)
    handler.wfile.write(b": a comment\n\n")
    for text in ANSWER:
        chunk(handler, text)
    chunk(handler, reason=reason)
    handler.wfile.write(b"data: [DONE]\n\n")


def unstreamed(handler: Any, _: int) -> None:
    message = {"role": "assistant", "content": "".join(ANSWER)}
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    begin(handler, content="application/json")
    handler.wfile.write(body.encode())


def half(handler: Any, _: int) -> None:
    begin(handler)
    chunk(handler, ANSWER[0])


def cut_off(handler: Any, _: int) -> None:
    begin(handler)
    chunk(handler, ANSWER[0])
    handler.wfile.write(b'data: {"choices": [{"delta": {"con')


def early_end(handler: Any, _: int) -> None:
    begin(handler)
    chunk(handler, ANSWER[0])
    handler.wfile.write(b"data: [DONE]\n\n")


def status(code: int, **headers: str) -> Callable[[Any, int], None]:
    def behave(handler: Any, _: int) -> None:
        begin(handler, code, "application/json", **headers)
        handler.wfile.write(b'{"error": {"message": "no"}}')

    return behave


def sends(content: bytes, kind: str = "text/event-stream") -> Callable[[Any, int], None]:
    def behave(handler: Any, _: int) -> None:
        begin(handler, content=kind)
        handler.wfile.write(content)

    return behave


def redirects(where: str, code: int = 307) -> Callable[[Any, int], None]:
    return lambda handler, _: begin(handler, code, Location=where)
