"""Faults at a server: clients that stall, disconnect or send garbage, and a process that is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from synthe_core.benchmarks.load_test.run import LoadTest, run_load_test
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.server import Server, allow_connections
from synthe_core.serving.api.settings import Settings
from tests.evaluation.models import saved
from tests.processes import start

JSON = {"Content-Type": "application/json"}
TYPE = "Content-Type: application/json"
PATIENT = 20.0  # seconds that anything may take on a busy machine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Server]:
    allow_connections()
    settings = Settings(max_body=1 << 20, header_timeout=2.0, body_timeout=1.0)
    with AsyncEngine([LoadedModel.load(checkpoint)]) as engine, Server(engine, settings) as running:
        yield running


def until(true: Callable[[], bool], seconds: float = PATIENT) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return False


def connect(server: Server) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=PATIENT)


def raw_response(server: Server, *parts: bytes, hang_up: bool = False) -> bytes:
    """What the server answers to raw bytes, to its last one."""
    with connect(server) as sock:
        try:
            for part in parts:
                sock.sendall(part)
            if hang_up:
                sock.shutdown(socket.SHUT_WR)
            response = b""
            while piece := sock.recv(65536):
                response += piece
        except (ConnectionResetError, BrokenPipeError):
            pass  # it has hung up on us before it read all
        return response


def request(body: bytes, *headers: str, path: str = "/v1/completions", method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", TYPE, *headers]
    if not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def completion(**fields: Any) -> bytes:
    return json.dumps({"model": "small", "prompt": "the sea", "max_tokens": 4, **fields}).encode()


def works(server: Server) -> bool:
    answer = httpx.post(
        f"{server.url}/v1/completions", content=completion(), headers=JSON, timeout=PATIENT, trust_env=False
    )
    return answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] > 0


GOOD = completion()
CHUNKED = "Transfer-Encoding: chunked"
MALFORMED = {
    "nothing": b"",
    "no request line": b"\r\n\r\n",
    "not http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "binary": bytes(range(256)) * 64,
    "half a request line": b"POST /v1/comp",
    "half its headers": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le",
    "truncated body": request(GOOD, "Content-Length: 500"),
    "a body longer than its content length": request(GOOD + b"x" * 100, f"Content-Length: {len(GOOD)}"),
    "negative length": request(GOOD, "Content-Length: -5"),
    "no number for a length": request(GOOD, "Content-Length: 1e3"),
    "two lengths": request(GOOD, f"Content-Length: {len(GOOD)}", "Content-Length: 3"),
    "length and chunks": request(b"0\r\n\r\n", f"Content-Length: {len(GOOD)}", CHUNKED),
    "a header of 1 MB": request(GOOD, f"X-Long: {'x' * 1_000_000}"),
    "ten thousand headers": request(GOOD, *(f"X-{n}: {n}" for n in range(10_000))),
    "a path of 1 MB": request(GOOD, path="/" + "x" * 1_000_000),
    "a header without a name": request(GOOD, ": empty"),
    "a header with a line feed": request(GOOD, "X-A: b\n c\0d"),
    "no host": request(GOOD).replace(b"Host: localhost\r\n", b""),
    "bad chunk size": request(b"zz\r\nabc\r\n0\r\n\r\n", CHUNKED),
    "negative chunk": request(b"-4\r\nabcd\r\n0\r\n\r\n", CHUNKED),
    "endless chunk size": request(b"f" * 100_000 + b"\r\n", CHUNKED),
    "chunk that ends early": request(b"ff\r\n{}\r\n0\r\n\r\n", CHUNKED),
    "chunks without an end": request(b"2\r\n{}\r\n", CHUNKED),
    "unknown coding": request(GOOD, "Transfer-Encoding: gzip, chunked"),
    "compressed": request(GOOD, "Content-Encoding: gzip"),
    "empty body": request(b""),
    "null": request(b"null"),
    "a list": request(b"[1, 2]"),
    "half of JSON": request(GOOD[:-3]),
    "two of JSON": request(GOOD + GOOD),
    "nested too deep": request(b"[" * 100_000),
    "nested in a field": request(GOOD[:-1] + b', "metadata": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}"),
    "a number of 5,000 digits": request(GOOD[:-1] + b', "seed": ' + b"9" * 5000 + b"}"),
    "infinite": request(GOOD[:-1] + b', "temperature": 1e999}'),
    "not a number": request(GOOD[:-1] + b', "temperature": NaN}'),
    "no UTF-8": request(b'{"model": "small", "prompt": "\xff\xfe"}'),
    "UTF-16": request(GOOD.decode().encode("utf-16")),
    "half a surrogate": request(b'{"model": "small", "prompt": "\\ud800", "max_tokens": 1}'),
    "half a surrogate as a stop": request(b'{"model": "small", "prompt": "a", "max_tokens": 1, "stop": ["\\udfff"]}'),
    "half a surrogate as a model": request(b'{"model": "\\ud800", "prompt": "a"}'),
    "a key twice": request(GOOD[:-1] + b', "prompt": 5}'),
    "too large": request(b" " * (1 << 20) + GOOD),
    "too large in chunks": request(b"10000\r\n" + b" " * 0x10000 + b"\r\n", CHUNKED)
    + (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 20,
    "up and out": request(b"", path="/page/../../../../etc/passwd", method="GET"),
    "up and out, in disguise": request(b"", path="/page/%2e%2e%2f%2e%2e%2fetc%2fpasswd", method="GET"),
    "a session up and out": request(b"", path="/api/sessions/..%2f..%2fx", method="DELETE"),
    "a nul in the path": request(b"", path="/page/index.html%00.js", method="GET"),
    "an unheard-of method": request(GOOD, method="BREW"),
    "a token that there is not": request(completion(prompt=[5, 999_999])),
    "another's schema": request(completion(schema={"type": "object"})),
}
FINE = {
    "a body longer than its content length",
    "no host",
    "a key twice",
    "compressed",
    "half a surrogate",
    "half a surrogate as a stop",
}
"""What may as well be answered."""


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_are_refused(server: Server, name: str) -> None:
    begun = time.monotonic()
    answer = raw_response(server, MALFORMED[name], hang_up=name in ("truncated body", "nothing"))
    status = int(answer.split(b" ", 2)[1]) if answer else None
    assert status is None or 400 <= status < 500 or (name in FINE and status == 200), answer[:300]
    if status is not None and b"application/json" in answer:
        content = answer.partition(b"\r\n\r\n")[2]
        assert b"Traceback" not in content and b"site-packages" not in content
    assert time.monotonic() - begun < PATIENT


def test_the_server_still_answers(server: Server) -> None:
    assert works(server) and until(lambda: server.engine.status()["live"] == 0)


def test_two_requests_in_one_packet_are_both_answered(server: Server) -> None:
    first = request(GOOD).replace(b"Connection: close\r\n", b"")
    assert raw_response(server, first + request(GOOD)).count(b"200 OK") == 2


@pytest.mark.parametrize("way", ["close", "reset"])
def test_disconnected_clients_free_their_sequences(server: Server, way: str) -> None:
    body = completion(stream=True, max_tokens=4000)
    socks = [connect(server) for _ in range(24)]
    for sock in socks:
        sock.sendall(request(body))
    assert until(lambda: server.engine.status()["live"] + server.engine.status()["waiting"] >= 20)
    for number, sock in enumerate(socks):
        if number % 2:
            sock.recv(10)  # some have read a little, some nothing
        if way == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    assert until(lambda: server.engine.status()["live"] == server.engine.status()["waiting"] == 0)
    assert works(server)


def stalled(server: Server, count: int) -> list[socket.socket]:
    """Clients of four kinds: silent, stuck in a header, stuck in a body, and never reading a long answer."""
    parts = [
        b"",
        b"POST /v1/completions HTTP/1.1\r\nHost: loc",
        request(GOOD, "Content-Length: 5000"),
        request(completion(stream=True, max_tokens=64)),
    ]
    socks = []
    for number in range(count):
        sock = connect(server)
        if number % 4 == 3:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.sendall(parts[number % 4] if number % 16 < 4 else parts[number % 3])  # one in 16 never reads
        socks.append(sock)
    return socks


def _others_are_answered(server: Server, count: int) -> None:
    socks = stalled(server, count)
    try:
        *_, last = run_load_test(
            LoadTest(server.url, clients=4, requests=12, prompt_tokens=8, output_tokens=4, timeout=PATIENT)
        )
        values = last.values  # type: ignore[attr-defined]
        assert (values["answered"], values["errors"]) == (12, {})
    finally:
        for sock in socks:
            sock.close()
    assert until(lambda: server.engine.status()["live"] == 0)


def test_stalled_clients_do_not_stop_others(server: Server) -> None:
    _others_are_answered(server, 200)


@pytest.mark.slow
def test_a_thousand_stalled_clients_do_not_stop_others(server: Server) -> None:
    _others_are_answered(server, 1000)


def test_stalled_clients_are_disconnected(server: Server) -> None:
    """A connection on which no request comes is closed; so is one whose body does not."""
    with connect(server) as silent, connect(server) as half, connect(server) as body:
        half.sendall(b"GET /health HTT")
        body.sendall(request(GOOD, "Content-Length: 5000"))
        assert silent.recv(100) == b""
        with contextlib.suppress(ConnectionResetError):
            assert half.recv(100)[:12] in (b"", b"HTTP/1.1 408", b"HTTP/1.1 400")
        assert body.recv(100)[:12] in (b"", b"HTTP/1.1 408")


def test_a_slow_body_times_out(server: Server) -> None:
    with connect(server) as sock:
        sock.sendall(request(b"", f"Content-Length: {10_000}"))
        begun = time.monotonic()
        try:
            while time.monotonic() - begun < PATIENT:
                sock.sendall(b" ")
                time.sleep(0.1)
        except OSError:
            pass
        assert time.monotonic() - begun < PATIENT / 2


def test_concurrent_requests_get_their_own_answers(server: Server) -> None:
    """Concurrent prompts that differ in one letter: no answer goes to the connection of another."""
    prompts = [f"letter {chr(97 + n)} begins" for n in range(16)]

    def ask(prompt: str) -> tuple[float, ...]:
        body = completion(prompt=prompt, temperature=0, max_tokens=6, logprobs=1)
        answer = httpx.post(
            f"{server.url}/v1/completions", content=body, headers=JSON, timeout=PATIENT, trust_env=False
        )
        return tuple(round(p, 4) for p in answer.json()["choices"][0]["logprobs"]["token_logprobs"])

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, prompts))
    assert together == [ask(prompt) for prompt in prompts] and len(set(together)) > 8


class Process:
    """`synthe serve` as a process of its own."""

    def __init__(self, *arguments: object) -> None:
        program = f"from synthe_cli.app import app; app({['serve', *map(str, arguments), '--port', '0', '--json']!r})"
        self.running = start(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        )
        assert self.running.stdout is not None
        for line in self.running.stdout:
            event = json.loads(line)
            if url := event.get("url") or event.get("values", {}).get("url"):
                self.url = url
                return
        raise AssertionError(self.running.communicate()[1])

    def post(self, **fields: Any) -> Any:
        body = completion(temperature=0, **fields)
        answer = httpx.post(f"{self.url}/v1/completions", content=body, headers=JSON, timeout=PATIENT, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.running.kill()
        self.running.communicate()


def test_sessions_survive_a_kill(checkpoint: Path, tmp_path: Path) -> None:
    """kill -9 while it writes: what was saved goes on where it was, as if nothing had been; what was not is gone."""
    folder = tmp_path / "sessions"
    texts = ["the sea is", " and the sky", " until the"]
    with Process(checkpoint, "--sessions", folder) as first:
        whole = [first.post(prompt=text, session="unbroken")["choices"][0]["text"] for text in texts]
        begun = [first.post(prompt=text, session="broken")["choices"][0]["text"] for text in texts[:2]]
        body = completion(stream=True, max_tokens=4000, session="lost", logit_bias={"256": -100})  # no end token
        with httpx.stream("POST", f"{first.url}/v1/completions", content=body, headers=JSON, trust_env=False) as answer:
            next(answer.iter_lines())
            first.running.send_signal(signal.SIGKILL)
            first.running.wait()
    with Process(checkpoint, "--sessions", folder) as second:
        listed = httpx.get(f"{second.url}/api/sessions", trust_env=False).json()
        names = {each["id"] for each in listed.get("sessions", listed.get("data", []))}
        assert {"unbroken", "broken"} <= names and "lost" not in names
        last = second.post(prompt=texts[2], session="broken")
        assert [*begun, last["choices"][0]["text"]] == whole
        assert last["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
