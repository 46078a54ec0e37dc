"""Who may ask, under which name, from which page, how much; and what every answer carries."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from synthe_core.serving.api.app import PAGE, TYPES
from synthe_core.serving.api.middleware import LOOPBACK, host_name
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from tests.serving.api.scripted import Scripted, answer

KEYS = ("a" * 32, "ключ" * 8)
BODY = {"model": "m", "prompt": "x"}


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {KEYS[0]}", KEYS[0], f"Bearer {KEYS[0]}x"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/api/status", "/nothing", "/page/../v1/models"])
def test_requests_without_a_key_are_refused(ask: Any, given: str, path: str) -> None:
    client = ask(engine=Scripted(answer), keys=KEYS)
    refused = client.get(path, headers={"Authorization": given} if given else {})
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert refused.headers["www-authenticate"] == "Bearer"
    assert not any(key in refused.text for key in KEYS)


def test_every_configured_key_is_accepted(ask: Any) -> None:
    client = ask(engine=Scripted(answer), keys=KEYS)
    for key in KEYS:
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}".encode()}).status_code == 200
    assert client.get("/health").status_code == 200
    assert client.get("/openapi.json").status_code == 200


@pytest.mark.parametrize(
    "host,allowed",
    [
        ("127.0.0.1:6900", True),
        ("localhost", True),
        ("[::1]:6900", True),
        ("LOCALHOST.:80", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example:6900", False),
        ("localhost:6900:6900", False),
        ("", False),
        ("a@localhost", False),
    ],
)
def test_dns_rebinding_is_refused(ask: Any, host: str, allowed: bool) -> None:
    got = ask(engine=Scripted(answer), hosts=LOOPBACK).get("/v1/models", headers={"Host": host})
    assert got.status_code == (200 if allowed else 421)
    assert ask(engine=Scripted(answer)).get("/v1/models", headers={"Host": host}).status_code == 200


def test_a_request_in_http_1_0_need_not_name_a_host() -> None:
    with Server(Scripted(answer), Settings(hosts=LOOPBACK)) as server:  # type: ignore[arg-type]
        for version, host, status in (
            ("1.0", "", b"200"),
            ("1.0", "Host: evil.example\r\n", b"421"),
            ("1.0", "Host: localhost\r\n", b"200"),
        ):
            with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port), timeout=30) as sock:
                sock.sendall(f"GET /v1/models HTTP/{version}\r\n{host}\r\n".encode())
                assert sock.recv(64).split()[1] == status


def test_a_slash_at_the_end_of_a_path_means_nothing(ask: Any) -> None:
    client = ask(engine=Scripted(answer))
    assert client.get("/v1/models/").json() == client.get("/v1/models").json()
    assert client.post("/v1/completions/", json=BODY, follow_redirects=False).status_code == 200
    assert client.get("/v1/nothing/").status_code == 404
    assert client.get("//").status_code == 200


def test_an_empty_body_is_called_empty(ask: Any) -> None:
    headers = {"Content-Type": "application/json"}
    for content in (b"", b" \n"):
        got = ask(engine=Scripted(answer)).post("/v1/completions", content=content, headers=headers)
        assert got.status_code == 400
        assert got.json()["error"]["message"] == "the body is empty: it should be a JSON object"


def test_names_of_hosts() -> None:
    assert host_name("[::1]:6900") == "::1"
    assert host_name("Example.ORG:80") == "example.org"
    assert host_name("a b:c") == ""


def test_cross_origin_requests_need_an_allowed_origin(ask: Any) -> None:
    headers_sent = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    closed = ask(engine=Scripted(answer))
    assert closed.options("/v1/completions", headers=headers_sent).status_code == 405
    assert "access-control-allow-origin" not in closed.get("/v1/models", headers=headers_sent).headers
    opened = ask(engine=Scripted(answer), origins=("https://a.example",), keys=KEYS)
    preflight = opened.options("/v1/completions", headers=headers_sent)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    other = opened.options("/v1/completions", headers=headers_sent | {"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
    assert opened.get("/v1/models", headers={"Origin": "https://a.example"}).status_code == 401


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_bodies_of_simple_cross_origin_requests_are_refused(ask: Any, kind: str) -> None:
    got = ask(engine=Scripted(answer)).post("/v1/completions", content=json.dumps(BODY), headers={"Content-Type": kind})
    assert got.status_code == 415


def test_headers_of_every_response(ask: Any) -> None:
    for got in (ask().get("/v1/models"), ask().get("/nowhere"), ask().post("/v1/completions", json={})):
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["content-security-policy"].startswith("default-src 'none'")
        assert got.headers["cache-control"] == "no-store"
        assert len(got.headers["x-request-id"]) == 32
        assert "server" not in got.headers


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py",
        "/page/..%2fapi%2fapp.py",
        "/page/%2e%2e/api/app.py",
        "/page//etc/passwd",
        "/page/",
        "/../../etc/passwd",
        "/page/index.html%00.js",
        "/page/nothing.js",
    ],
)
def test_no_path_reaches_the_file_system(ask: Any, path: str) -> None:
    got = ask().get(path)
    assert got.status_code == 404
    assert got.json()["error"]["message"] == "no such path"


@pytest.mark.parametrize("name", sorted(path.name for path in PAGE.glob("*") if path.suffix in TYPES))
def test_the_page_is_served_by_name(ask: Any, name: str) -> None:
    got = ask(keys=KEYS).get(f"/page/{name}")
    assert got.content == (PAGE / name).read_bytes()
    policy = got.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    "content,status",
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"x"', 400),
        (b"\xff\xfe", 400),
        (b'{"model": "\\ud800"}', 400),
        (b"[" * 50_000, 400),
        (b'{"model": ' + b'{"a":' * 20_000, 400),
        (b'{"n": 1e999}', 400),
        (b'{"n": ' + b"9" * 9000 + b"}", 400),
        (b'{"model": "m", "prompt": "x", "temperature": NaN}', 400),
        (b" " * 200_000, 413),
    ],
)
def test_invalid_bodies(ask: Any, content: bytes, status: int) -> None:
    client = ask(engine=Scripted(answer), max_body=120_000)
    got = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert got.status_code == status
    error = got.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and len(error["message"]) < 500


def test_a_chunked_body_is_limited_too(ask: Any) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 1000

    got = ask(engine=Scripted(answer), max_body=100_000).post(
        "/v1/completions", content=endless(), headers={"Content-Type": "application/json"}
    )
    assert got.status_code == 413


@pytest.mark.parametrize(
    "body,param",
    [
        ({"model": "m", "prompt": "x", "n": 5}, "n"),
        ({"model": "m", "prompt": ["x"] * 13}, None),
        ({"model": "m", "prompt": "x" * 50}, None),
        ({"model": "m", "prompt": []}, "prompt"),
        ({"model": "m", "prompt": "x", "temperature": -1}, "temperature"),
        ({"model": "m", "prompt": "x", "stop": ""}, "stop"),
        ({"model": "m", "prompt": "x", "max_token": 3}, "max_token"),
        ({"model": "m", "prompt": "x", "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"prompt": "x"}, "model"),
        ({"model": "m", "prompt": "x", "session": "../x"}, "session"),
        ({"model": "m", "prompt": "x", "session": "s", "n": 2}, "session"),
    ],
)
def test_limits(ask: Any, body: dict[str, Any], param: str | None) -> None:
    client = ask(engine=Scripted(answer), max_prompt=20, max_tokens=30, max_n=4, max_choices=12)
    got = client.post("/v1/completions", json=body)
    assert got.status_code == 400
    error = got.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    if param == "max_token":
        assert "did you mean 'max_tokens'" in error["message"]


def test_prompts_are_logged_only_with_log_prompts(ask: Any) -> None:
    secret = "the cat knows"
    for shown in (False, True):
        lines: list[str] = []
        client = ask(engine=Scripted(answer), log=lines.append, log_prompts=shown)
        client.post("/v1/completions", json={"model": "m", "prompt": secret})
        client.post("/v1/completions", json={"model": "m", "prompt": secret, secret: 1})
        client.post("/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": secret}]})
        client.get("/v1/models", params={"q": secret})
        assert any("POST /v1/completions  200" in line for line in lines)
        assert sum(secret in line for line in lines) == (2 if shown else 0), lines


def test_an_internal_error_is_logged_in_one_line(ask: Any) -> None:
    class Broken(Scripted):
        def status(self, owner: str = "") -> dict[str, Any]:
            raise ZeroDivisionError("secret of the\nhouse")

    lines: list[str] = []
    got = ask(engine=Broken(answer), log=lines.append).get("/api/status")
    assert got.status_code == 500
    assert "secret" not in got.text
    assert got.json()["error"]["type"] == "server_error"
    assert lines and "ZeroDivisionError: secret of the house" in lines[-1]


def connection(server: Server, sent: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    sock.sendall(sent)
    return sock


@pytest.fixture
def hasty() -> Iterator[Server]:
    with Server(Scripted(answer), Settings(header_timeout=0.5, body_timeout=0.5)) as server:  # type: ignore[arg-type]
        yield server


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nA: b"])
def test_a_connection_without_a_request_is_closed(hasty: Server, sent: bytes) -> None:
    with connection(hasty, sent) as sock, contextlib.suppress(ConnectionResetError):  # which says the same
        assert sock.recv(1000) == b""


def test_a_late_body_is_408(hasty: Server) -> None:
    head = (
        b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    )
    with connection(hasty, head) as sock:
        assert sock.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_half_open_connections_do_not_block_others() -> None:
    patient = Settings(header_timeout=3600)  # so that none of them is sent away
    with Server(Scripted(answer), patient) as server:  # type: ignore[arg-type]
        idle = [connection(server, b"GET /hea") for _ in range(200)]
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
        for sock in idle:
            sock.close()
